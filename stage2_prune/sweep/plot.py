"""Draw the pictures of a sweep: a small panel for each method, with all other methods in grey behind it."""

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from configs.counted import counted
from stage2_prune.evaluation.plot import COLOURS, ends, save_figure
from stage2_prune.language.price import one_convention
from stage2_prune.sweep.axes import AXES, Axis, Row

REFERENCES = {"keep_all": "all tokens", "keep_none": "none"}
"""Methods that are drawn as lines through all panels."""
GROUPS = {"before_llm": "before the language model", "in_llm": "inside the language model"}
COLUMNS = 6
_BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
_INK, _GREY, _PALE = "#222222", "#6b6b6b", "#d4d4d4"
_PANEL, _GAP = (2.1, 1.3), (0.16, 0.36)
"""Width and height of a panel, and of the gaps between panels, in inches."""
_LEFT, _RIGHT, _TOP, _HEADING, _BOTTOM = 0.5, 0.2, 0.6, 0.46, 0.36
Curves = dict[str, dict[str, list[Row]]]
"""For each method, its rows by the name of their curve."""
Groups = dict[str, Curves]
"""The curves by the place where their method prunes."""


def plot(summary: dict[str, Any], name: str, path: Path) -> None:
    """Write the PNG of accuracy against AXES[name]: logarithmic, 95 % bands, the unpruned and the blind model as lines."""
    axis = AXES[name]
    rows = [row for row in summary["results"] if row["method"] not in REFERENCES and axis.value(row) > 0]
    groups = {place: _methods(rows, place) for place in GROUPS}
    lines = sum(ceil(len(methods) / COLUMNS) for methods in groups.values())
    heading = _HEADING * sum(bool(methods) for methods in groups.values())
    note = fill(_note(summary, name), 190)
    footer = _BOTTOM + 0.15 * (note.count("\n") + 1)
    size = (
        _LEFT + COLUMNS * (_PANEL[0] + _GAP[0]) - _GAP[0] + _RIGHT,
        _TOP + heading + lines * (_PANEL[1] + _GAP[1]) + footer,
    )
    figure = Figure(figsize=size, dpi=150)
    _titles(figure, summary, axis, note)
    panels: list[Axes] = []
    for methods, upper in _laid_out(figure, groups):
        panels += _panels(figure, methods, upper, rows, summary, axis)
    if panels:  # a sweep of the references alone has no panel
        _scales(panels, rows, axis)
    save_figure(figure, path)


def _methods(rows: Sequence[Row], place: str) -> Curves:
    """Group the rows of the methods that prune at `place` into curves, by method and by the curve's name."""
    methods: Curves = {}
    for row in sorted((row for row in rows if row["place"] == place), key=lambda row: row["method"]):
        methods.setdefault(row["method"], {}).setdefault(_name(row, rows), []).append(row)
    return methods


def _name(row: Row, rows: Sequence[Row]) -> str:
    """Name a curve by what tells it from the other curves of its method: parameters, order, positions.

    How budgets are matched is no part of the name, because a curve is drawn at the tokens that entered.
    """
    _, _, parameters = row["label"].partition("@")
    parts = [part for part in parameters.split(",") if part and not part.startswith(("quirks=", "match="))]
    positions = {other["positions"] for other in rows if other["label"] == row["label"]}
    quirks = [str(row["quirks"])] if row["quirks"] else []
    return ", ".join([*quirks, *parts, *([row["positions"]] if len(positions) > 1 else [])])


def _laid_out(figure: Figure, groups: Groups) -> Iterator[tuple[Curves, float]]:
    """Write each group's heading; yield the group with the height of its first line of panels, in inches from below."""
    width, height = figure.get_size_inches()
    below = height - _TOP
    for place, methods in groups.items():
        if methods:
            below -= _HEADING
            figure.text(_LEFT / width, (below + 0.12) / height, GROUPS[place], size=10.5, color=_GREY)
            yield methods, below
            below -= ceil(len(methods) / COLUMNS) * (_PANEL[1] + _GAP[1])


def _panels(
    figure: Figure,
    methods: Curves,
    upper: float,
    rows: Sequence[Row],
    summary: dict[str, Any],
    axis: Axis,
) -> list[Axes]:
    """Draw the panels of a group, the first line at the height `upper`."""
    width, height = figure.get_size_inches()
    panels: list[Axes] = []
    for number, (method, curves) in enumerate(methods.items()):
        line, column = divmod(number, COLUMNS)
        left = _LEFT + column * (_PANEL[0] + _GAP[0])
        bottom = upper - line * (_PANEL[1] + _GAP[1]) - 0.2 - _PANEL[1]
        axes = figure.add_axes((left / width, bottom / height, _PANEL[0] / width, _PANEL[1] / height))
        _panel(axes, method, curves, rows, summary, axis)
        last = number + COLUMNS >= len(methods)
        axes.tick_params(labelleft=column == 0, labelbottom=last, length=2, width=0.6, labelsize=7, colors=_GREY, pad=2)
        panels.append(axes)
    return panels


def _panel(
    axes: Axes, method: str, curves: dict[str, list[Row]], rows: Sequence[Row], summary: dict[str, Any], axis: Axis
) -> None:
    """Draw one method in colour, all others in grey, and the unpruned and the blind model as dashed lines."""
    others = (
        curve
        for place in GROUPS
        for name, others_curves in _methods(rows, place).items()
        if name != method
        for curve in others_curves.values()
    )
    for curve in others:
        points = _sorted(curve)
        if len(points) > 1:
            axes.plot(
                [axis.value(row) for row in points], [row["accuracy"] for row in points], color=_PALE, lw=0.6, zorder=1
            )
    for row in summary["results"]:
        if row["method"] in REFERENCES:
            axes.axhline(row["accuracy"], color=_GREY, lw=0.7, ls=(0, (4, 3)), zorder=2)
    for number, (name, curve) in enumerate(curves.items()):
        _curve(axes, _sorted(curve), number, axis)
        if len(curves) > 1:
            corner = (0.975, 0.06 + 0.125 * (len(curves) - 1 - number))
            axes.annotate(
                name,
                corner,
                xycoords="axes fraction",
                ha="right",
                size=7,
                color=_colour(number),
                zorder=5,
                bbox=_BEHIND,
            )
    first = _sorted(next(iter(curves.values())))[0]
    fewest = f"{first['accuracy']:.2f} at {axis.tick(axis.value(first))}"
    axes.set_title(method, loc="left", size=8, color=_INK, pad=3, weight="bold")
    axes.set_title(fewest, loc="right", size=7, color=COLOURS[0], pad=3)


def _curve(axes: Axes, points: Sequence[Row], number: int, axis: Axis) -> None:
    """Draw a curve with its band. Later curves are thinner, so that a curve does not hide another that it coincides with."""
    colour = _colour(number)
    x, y = [axis.value(row) for row in points], [row["accuracy"] for row in points]
    low, high = [ends(row)[0] for row in points], [ends(row)[1] for row in points]
    thin = 0.55**number
    if len(points) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, zorder=3)
    else:
        axes.vlines(x, low, high, color=colour, lw=2.2 * thin, zorder=3)
    axes.plot(x, y, color=colour, lw=2.2 * thin, marker="o", ms=3.6 * thin**0.5, mew=0, zorder=4 + number / 10)


def _colour(number: int) -> str:
    """Choose the colour of a panel's curve; colours repeat if there are more curves than colours."""
    return COLOURS[number % len(COLOURS)]


def _sorted(curve: Sequence[Row]) -> list[Row]:
    """Sort rows by tokens, whatever the axis, so that neighbouring budgets are neighbours on the curve."""
    return sorted(curve, key=lambda row: row["tokens_per_layer_mean"])


def _scales(panels: Sequence[Axes], rows: Sequence[Row], axis: Axis) -> None:
    """Give all panels the same scale."""
    values = [axis.value(row) for row in rows]
    lowest = min(ends(row)[0] for row in rows)
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xlim(min(values) / 1.15, max(values) * 1.15)
        axes.set_ylim(lowest - 0.03, 1.03)
        axes.xaxis.set_major_locator(FixedLocator(axis.ticks(values)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: axis.tick(value).rstrip("%"))
        axes.yaxis.set_major_locator(FixedLocator([0, 0.2, 0.4, 0.6, 0.8, 1]))
        axes.grid(color="#eeeeee", lw=0.5, zorder=0)
        axes.set_axisbelow(True)
        if axis.value is AXES["latency"].value:
            # To the right of this line, pruning is slower than not pruning.
            axes.axvline(1, color=_GREY, lw=0.7, zorder=2)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set(color=_PALE, linewidth=0.8)


def _titles(figure: Figure, summary: dict[str, Any], axis: Axis, note: str) -> None:
    """Write the title, the line below it, and the note at the foot."""
    width, height = figure.get_size_inches()
    title = axis.title.format(convention=one_convention(summary["results"]))
    figure.text(
        _LEFT / width, 1 - 0.2 / height, f"Accuracy against {title}", size=13, color=_INK, va="top", weight="bold"
    )
    lines = [
        f"{REFERENCES[row['method']]} {row['accuracy']:.3f}"
        for row in summary["results"]
        if row["method"] in REFERENCES
    ]
    below = (
        f"{summary['config']['name']}: {counted(summary['n_questions'], 'question')} about "
        f"{counted(summary['n_images'], 'image')}. One method in colour with its 95 % band, all others in grey; dashed: "
        f"{', '.join(lines)}. Right of a name: at its fewest tokens."
    )
    figure.text(_LEFT / width, 1 - 0.47 / height, below, size=9, color=_GREY, va="top")
    figure.text(_LEFT / width, 0.12 / height, note, size=7.5, color=_GREY, va="bottom", linespacing=1.3)


def _note(summary: dict[str, Any], name: str) -> str:
    """Say which methods and cells the picture lacks, and how latencies were measured."""
    lacking = {row["method"]: row["reason"].split(":")[0] for row in summary["unavailable"]}
    listed = ", ".join(f"{method} ({reason})" for method, reason in lacking.items())
    parts = [f"Not available: {listed}."] if lacking else []
    cells = len(summary["infeasible"])
    if cells:
        methods = dict.fromkeys(row["method"] for row in summary["infeasible"])
        parts.append(f"{counted(cells, 'cell')} cannot be met ({', '.join(methods)}): see the table.")
    if name == "latency":
        parts.append(
            "To the right of the upright line pruning is slower than not pruning. Medians of one question at a time, in turn "
            f"with the unpruned model; {summary['machine']}."
        )
    return " ".join(parts)
