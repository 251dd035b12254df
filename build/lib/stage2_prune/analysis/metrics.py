"""What can be said of the patches that a pruner keeps: every number is of one image, or of one question about it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stage2_prune.primitives.windows import windows

CELLS = 4
"""The image is cut into so many cells a side to see which parts of it are kept at all."""


@dataclass(frozen=True)
class Metric:
    """A number per image or question; `definition` is one sentence."""

    name: str
    title: str
    unit: str
    definition: str


METRICS = (
    Metric(
        "nearest_kept", "distance to the nearest kept patch", "patches",
        "Distance of a patch to the nearest kept one between their middles, mean over all patches of an image; 0 where all "
        "are kept.",
    ),
    Metric(
        "cells_covered", "cells with a kept patch", "share",
        f"Share of the {CELLS} x {CELLS} cells of an image (fewer where the grid is smaller) in which at least one patch is "
        "kept.",
    ),
    Metric(
        "duplicates", "likeness of kept patches", "cosine",
        "Cosine of a kept patch's raw features to those of the kept patch most like it, mean over the kept patches of an "
        "image.",
    ),
    Metric(
        "padding", "padding among kept patches", "share",
        "Share of the area of the kept patches that shows padding and no image.",
    ),
    Metric(
        "recall", "kept patches of the asked object", "share",
        "Share of the patches that show what a question is about that are kept, mean over the questions for which they are "
        "known; a random choice has tokens / patches.",
    ),
    Metric(
        "question_sensitivity", "change with the question", "1 - Jaccard",
        "1 - Jaccard index of the patches kept for two different questions about one image, mean over its pairs; only for "
        "methods that read the question, the others keep the same by construction.",
    ),
)  # fmt: skip


def jaccard(
    one: Bool[Tensor, "method question patch"], other: Bool[Tensor, "another question patch"]
) -> Float[Tensor, "question method another"]:
    """Shared patches / patches that either keeps, for every two methods; 1 where neither keeps any."""
    a, b = one.float().transpose(0, 1), other.float().transpose(0, 1)
    shared = a @ b.transpose(1, 2)
    either = a.sum(2)[:, :, None] + b.sum(2)[:, None, :] - shared
    return torch.where(either > 0, shared / either.clamp_min(1), 1.0)


def jaccard_by_chance(patches: int, keep: int) -> float:
    """Expected Jaccard index of two independent random choices of `keep` patches.

    >>> jaccard_by_chance(2, 1)
    0.5
    """
    if not keep:
        return 1.0
    everything = math.comb(patches, keep)
    fewest = max(0, 2 * keep - patches)
    ways = ((x, math.comb(keep, x) * math.comb(patches - keep, keep - x)) for x in range(fewest, keep + 1))
    return sum(count / everything * x / (2 * keep - x) for x, count in ways)


class Coverage:
    """How evenly kept patches lie over one grid."""

    def __init__(self, grid: tuple[int, int], cells: int = CELLS) -> None:
        places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
        self._apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
        self._cell = windows(grid, cells, cells)

    def nearest(self, kept: Bool[Tensor, " patch"]) -> float:
        """`nearest_kept`; NaN where nothing is kept."""
        return self._apart[:, kept].amin(1).mean().item() if kept.any() else math.nan

    def cells(self, kept: Bool[Tensor, " patch"]) -> float:
        """`cells_covered`."""
        return len(self._cell[kept].unique()) / (int(self._cell.max()) + 1)


def duplicates(cosine: Float[Tensor, "patch patch"], kept: Bool[Tensor, " patch"]) -> float:
    """`duplicates` from the cosines of all patches; NaN where fewer than two are kept."""
    if kept.sum() < 2:
        return math.nan
    among = cosine[kept][:, kept]
    return among.fill_diagonal_(-math.inf).amax(1).mean().item()


def padding(image_area: Float[Tensor, " patch"], kept: Bool[Tensor, " patch"]) -> float:
    """`padding`, from the share of each patch that shows the image; NaN where nothing is kept."""
    return 1 - image_area[kept].mean().item() if kept.any() else math.nan


def recall(shown: Bool[Tensor, " patch"] | None, kept: Bool[Tensor, " patch"]) -> float:
    """`recall` of the patches that are `shown`; NaN where they are not known."""
    return math.nan if shown is None else (kept & shown).sum().item() / shown.sum().item()


def question_sensitivity(kept: Bool[Tensor, "question patch"], texts: Sequence[str]) -> float:
    """`question_sensitivity` of questions about one image; NaN where no two of them differ."""
    distinct = list({text: place for place, text in enumerate(texts)}.values())
    if len(distinct) < 2:
        return math.nan
    alike = jaccard(kept[distinct][:, None], kept[distinct][:, None])[0]
    pairs = np.triu_indices(len(distinct), 1)
    return float(1 - alike.numpy()[pairs].mean())
