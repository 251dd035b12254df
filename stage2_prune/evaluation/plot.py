"""Draw the plot of an evaluation: accuracy against visual tokens, one line per method."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from configs.counted import counted
from configs.files.atomic import write_atomically

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, whose colours colour-blind readers can tell apart."""
MARKERS = "osD^vPX"
_GREY = "#777777"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Write the PNG: logarithmic token axis, 95 % bands, the unpruned and the blind model as reference lines."""
    figure = Figure(figsize=(8, 4.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    curves = _curves(summary["results"])
    for number, rows in enumerate(curves.values()):
        _curve(axes, rows, COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
    _labels(axes, curves)
    _references(axes, summary["results"])
    ticks = sorted({row["tokens_per_layer_mean"] for rows in curves.values() for row in rows})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("visual tokens per image (mean over language-model layers)")
    axes.set_ylabel("accuracy (exact match)")
    axes.set_title(
        f"{summary['config']['name']}, {summary['split']}: {counted(summary['n_questions'], 'question')}",
        loc="left",
        size=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write the PNG of a figure; the same figure gives the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _curves(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group rows by label, in order of tokens; leave out the references keep_all and keep_none, which are no curves."""
    several = len({(row["pruner"], row["positions"]) for row in results}) > len({row["pruner"] for row in results})
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if row["pruner"] not in ("keep_all", "keep_none"):
            label = f"{row['pruner']}, {row['positions']}" if several else row["pruner"]
            curves.setdefault(label, []).append(row)
    return {label: sorted(rows, key=lambda row: row["tokens_per_layer_mean"]) for label, rows in curves.items()}


def _curve(axes: Axes, rows: Sequence[dict[str, Any]], colour: str, marker: str) -> None:
    tokens = [row["tokens_per_layer_mean"] for row in rows]
    axes.fill_between(
        tokens,
        [ends(row)[0] for row in rows],
        [ends(row)[1] for row in rows],
        color=colour,
        alpha=0.12,
        lw=0,
    )
    axes.plot(tokens, [row["accuracy"] for row in rows], color=colour, marker=marker, ms=4.5, lw=1.6)


def ends(row: dict[str, Any]) -> tuple[float, float]:
    """Return both ends of an accuracy's interval; the accuracy itself twice where one image gives no interval."""
    low, high = row["ci95"] or (row["accuracy"], row["accuracy"])
    return low, high


def _labels(axes: Axes, curves: dict[str, list[dict[str, Any]]]) -> None:
    """Write each curve's name at its right end; move names apart where ends are close."""
    if not curves:
        return
    low, high = axes.get_ylim()
    gap = 0.052 * (high - low)
    last_points = sorted(
        (rows[-1]["accuracy"], number, label, rows[-1]) for number, (label, rows) in enumerate(curves.items())
    )
    heights = _spread([accuracy for accuracy, *_ in last_points], gap)
    right = max(row["tokens_per_layer_mean"] for *_, row in last_points)
    for height, (accuracy, number, label, row) in zip(heights, last_points, strict=True):
        colour = COLOURS[number % len(COLOURS)]
        axes.annotate(
            label,
            (row["tokens_per_layer_mean"], accuracy),
            xytext=(right * 1.12, height),
            textcoords="data",
            va="center",
            size=8.5,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.6,
                "alpha": 0.6,
                "shrinkA": 0,
                "shrinkB": 3,
            },
        )


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Move ascending values at least `gap` apart, around the middle of each crowd."""
    crowds: list[list[float]] = []
    for value in values:
        crowds.append([value])
        while len(crowds) > 1 and _bottom(crowds[-1], gap) - _top(crowds[-2], gap) < gap:
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    return [_bottom(crowd, gap) + gap * step for crowd in crowds for step in range(len(crowd))]


def _bottom(crowd: Sequence[float], gap: float) -> float:
    return sum(crowd) / len(crowd) - gap * (len(crowd) - 1) / 2


def _top(crowd: Sequence[float], gap: float) -> float:
    return sum(crowd) / len(crowd) + gap * (len(crowd) - 1) / 2


def _references(axes: Axes, results: Sequence[dict[str, Any]]) -> None:
    for name, text in (("keep_all", "all {} tokens"), ("keep_none", "no visual tokens")):
        for row in results:
            if row["pruner"] == name:
                axes.axhline(row["accuracy"], color=_GREY, lw=1, ls=(0, (4, 3)), zorder=0)
                label = f"{text.format(row['keep'])}: {row['accuracy']:.3f}"
                axes.annotate(
                    label,
                    (0.01, row["accuracy"]),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    size=8,
                    color=_GREY,
                )
