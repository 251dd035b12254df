"""Draw pictures of what methods keep: a heat map per budget, and all metrics side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from configs.budgets import ascending, in_words
from configs.counted import counted
from stage2_prune.evaluation.plot import save_figure

_GREY = "#777777"
_LIKENESS, _BUDGETS = "YlGnBu", "cividis"
"""Colour maps that colour-blind readers can read, and that stay readable in grey."""


def jaccard(analysis: Mapping[str, Any], matrix: Mapping[str, Any], path: Path) -> None:
    """Draw the heat map of one budget; the diagonal, 1 by definition, is left grey."""
    names, values = matrix["methods"], np.array(matrix["mean"])
    side = 0.39 * len(names)
    figure = Figure(figsize=(side + 2.6, side + 2.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, values)
    top = max(np.nanmax(shown, initial=0), matrix["by_chance"])
    colours = Normalize(0, top)
    axes.set_facecolor("#EEEEEE")
    axes.imshow(shown, cmap=_LIKENESS, norm=colours)
    for (row, column), value in np.ndenumerate(shown):
        if row != column:
            ink = "white" if colours(value) > 0.55 else "black"
            axes.text(column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", size=7, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", size=8)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"Patches in common at {matrix['keep']} of {analysis['patches']} tokens\n"
        f"Jaccard index, mean of {counted(analysis['n_images'], 'image')}; two random choices: {matrix['by_chance']:.2f}",
        loc="left", size=9,
    )  # fmt: skip
    save_figure(figure, path)


def metrics(analysis: Mapping[str, Any], path: Path) -> None:
    """Draw a panel per metric, a line per method, a dot per budget; darker dots stand for fewer tokens."""
    measured = [name for name in analysis["metrics"] if name not in analysis["not_measured"]]
    names = list(dict.fromkeys(row["pruner"] for row in analysis["results"]))
    stated = {row["keep"] for row in analysis["results"] if row["keep"]}
    budgets = sorted((keep for keep in stated if keep != analysis["patches"]), key=ascending)
    figure = Figure(figsize=(2.2 + 2.1 * len(measured), 1.5 + 0.24 * len(names)), dpi=130, layout="constrained")
    panels: list[Axes] = list(np.atleast_1d(figure.subplots(1, len(measured), sharey=True)))
    shades = {keep: colormaps[_BUDGETS](0.9 * rank / max(len(budgets) - 1, 1)) for rank, keep in enumerate(budgets)}
    for axes, metric in zip(panels, measured, strict=True):
        for row in analysis["results"]:
            _dot(axes, names.index(row["pruner"]), row["metrics"][metric], shades.get(row["keep"], "white"))
        _dress(axes, names, analysis["metrics"][metric])
    handles = [_key(shades[keep], in_words(keep)) for keep in budgets]
    if any(row["keep"] not in shades for row in analysis["results"]):
        handles.append(_key("white", "all, or as many as the method likes"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.suptitle(
        f"What is kept of {counted(analysis['n_images'], 'image')} ({analysis['config']['name']}, {analysis['split']}); "
        "bars: 95 % intervals",
        x=0.01, ha="left", size=10,
    )  # fmt: skip
    save_figure(figure, path)


def _dot(axes: Axes, line: int, value: Mapping[str, Any] | None, colour: Any) -> None:
    if value is not None:
        axes.plot(value["ci95"], [line, line], color=_GREY, lw=1.2, zorder=1)
        axes.plot(value["mean"], line, "o", ms=5.5, mfc=colour, mec=_GREY, mew=0.6, zorder=2)


def _dress(axes: Axes, names: list[str], metric: Mapping[str, Any]) -> None:
    axes.set_yticks(range(len(names)), names, size=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_title(metric["title"], loc="left", size=8)
    axes.set_xlabel(metric["unit"], size=8)
    axes.tick_params(axis="x", labelsize=7)
    if metric["unit"] != "cosine":
        right = axes.get_xlim()[1] if metric["unit"] == "patches" else 1.03
        axes.set_xlim(-0.03 * right, right)
    axes.tick_params(axis="y", length=0)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _key(colour: Any, label: str) -> Line2D:
    return Line2D([], [], ls="", marker="o", ms=5.5, mfc=colour, mec=_GREY, mew=0.6, label=label)
