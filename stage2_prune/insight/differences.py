"""Count what one method keeps that another drops, where in images that is, and how much of it is asked about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor

from configs.experiment import EvalSection
from configs.progress import ProgressBar
from stage2_prune.analysis.kept_sets import SelectingMethods
from stage2_prune.analysis.truth import Truth
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.intervals import accuracy_interval
from stage2_prune.evaluation.plot import save_figure
from store.questions.question import Question


@dataclass(frozen=True)
class KeptBoth:
    """What two methods keep of the image of each question."""

    questions: tuple[Question, ...]
    ours: Bool[Tensor, "question patch"]
    others: Bool[Tensor, "question patch"]

    @property
    def alone(self) -> Bool[Tensor, "question patch"]:
        """The patches that our method keeps and the other drops."""
        return self.ours & ~self.others

    @property
    def missed(self) -> Bool[Tensor, "question patch"]:
        """The patches that the other method keeps and ours drops."""
        return self.others & ~self.ours


@torch.no_grad()
def kept_both(selection: SelectingMethods, ours: Cell, other: Cell, asked: Sequence[Question]) -> KeptBoth:
    """Find what two cells keep for every question."""
    kept: dict[str, list[Tensor]] = {"ours": [], "other": []}
    batches = [[question] for question in asked]
    for batch in ProgressBar(selection.session.features.batches(batches), "read", total=len(asked), unit="questions"):
        for name, cell in (("ours", ours), ("other", other)):
            of_batch, rows = selection.kept(cell, batch)
            kept[name].append(of_batch.patches[rows])
    return KeptBoth(tuple(asked), torch.cat(kept["ours"]), torch.cat(kept["other"]))


def counts(kept: KeptBoth, truth: Truth, section: EvalSection) -> list[dict[str, Any]]:
    """List shares of patches, as means over questions with intervals over images; those that no question has are left out.

    Args:
        kept: what both methods keep.
        truth: the patches that show what questions are about.
        section: the number of resamples and their seed.
    """
    region = torch.zeros_like(kept.ours)
    for number, question in enumerate(kept.questions):
        if (shown := truth.get(question.question_id)) is not None:
            region[number] = shown
    pairs: Mapping[str, tuple[Tensor, Tensor]] = {
        "of what it keeps, the other drops": (kept.alone, kept.ours),
        "of what the other keeps, it drops": (kept.missed, kept.others),
        "of what it alone keeps, shows what is asked about": (kept.alone & region, kept.alone),
        "of what the other alone keeps, shows what is asked about": (kept.missed & region, kept.missed),
        "of what is asked about, it keeps": (kept.ours & region, region),
        "of what is asked about, the other keeps": (kept.others & region, region),
    }
    known = region.any(1)
    listed: list[dict[str, Any]] = []
    for what, (part, whole) in pairs.items():
        usable = (whole.any(1) & (known | ("asked about" not in what))).numpy()
        if usable.any():
            shares = (part.sum(1) / whole.sum(1).clamp_min(1)).double().numpy()[usable]
            images = [question.image for question, used in zip(kept.questions, usable, strict=True) if used]
            ends = accuracy_interval(shares, images, section.bootstrap, section.seed)
            listed.append({"share": what, "mean": float(shares.mean()), "ci95": ends, "n": len(shares)})
    return listed


def draw(kept: KeptBoth, names: tuple[str, str], grid: tuple[int, int], path: Path) -> None:
    """Write two maps over the places of an image: how often one method keeps a patch there that the other drops."""
    figure = Figure(figsize=(7.2, 3.5), dpi=150, layout="constrained")
    maps = [shares(alone).reshape(grid) for alone in (kept.alone, kept.missed)]
    top = max(float(each.max()) for each in maps) or 1.0
    ours, other = names
    titles = (f"{ours} keeps, {other} drops", f"{other} keeps, {ours} drops")
    for number, (title, each) in enumerate(zip(titles, maps, strict=True)):
        axes = figure.add_subplot(1, 2, number + 1)
        image = axes.imshow(each, cmap="magma", vmin=0, vmax=top)
        axes.set_title(title, loc="left", size=8)
        axes.set_xticks([])
        axes.set_yticks([])
        if number:
            figure.colorbar(image, ax=axes, shrink=0.8, label="share of questions")
    save_figure(figure, path)


def shares(patches: Bool[Tensor, "question patch"]) -> Float[np.ndarray, " patch"]:
    """Return for each place the share of questions in whose image the patch there is marked."""
    return patches.double().mean(0).numpy()
