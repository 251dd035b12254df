"""Draw the picture of a training: loss per step, validation accuracy per epoch."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.files.atomic import write_atomically
from stage2_prune.evaluation.plot import COLOURS

SMOOTHED = 0.05
"""Share of all steps that each point of the smoothed loss averages."""


def draw(rows: Sequence[Mapping[str, Any]], title: str, best_epoch: int, path: Path) -> None:
    """Write the PNG of a training log; `rows` are the log's lines."""
    figure = Figure(figsize=(9, 3.6), dpi=150, layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _losses(losses, [row for row in rows if row["event"] == "step"])
    _accuracies(accuracies, [row for row in rows if row["event"] == "validation"], best_epoch)
    for axes in (losses, accuracies):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title, x=0.01, ha="left", size=10)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _losses(axes: Axes, steps: Sequence[Mapping[str, Any]]) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats per answer token)")
    if not steps:
        axes.text(0.5, 0.5, "no steps: the freshly seeded module", ha="center", transform=axes.transAxes)
        return
    losses = np.array([row["loss"] for row in steps])
    axes.plot(np.arange(1, len(losses) + 1), losses, ".", ms=3, alpha=0.35, color=COLOURS[0])
    width = max(1, round(SMOOTHED * len(losses)))
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(np.arange(width, len(losses) + 1), smooth, lw=1.6, color=COLOURS[0])


def _accuracies(axes: Axes, epochs: Sequence[Mapping[str, Any]], best_epoch: int) -> None:
    numbers = [row["epoch"] for row in epochs]
    values = [row["accuracy"] for row in epochs]
    axes.plot(numbers, values, "o-", ms=4.5, lw=1.6, color=COLOURS[1])
    best = values[numbers.index(best_epoch)]
    axes.plot(best_epoch, best, "o", ms=10, mfc="none", color=COLOURS[1])
    axes.annotate(
        f"chosen: {best:.3f}", (best_epoch, best), xytext=(0, -14), textcoords="offset points", ha="center",
        va="top", size=8.5, color=COLOURS[1],
    )  # fmt: skip
    axes.margins(x=0.15, y=0.25)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation accuracy at {epochs[0]['keep']} tokens")
