"""Cutting an image into chunks, and dividing a budget among chunks or groups."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.top_k import ranking

EPSILON = 1e-6
"""Added to a sum before a division by it, so that a sum of 0 divides too."""


def runs(grid: tuple[int, int], count: int) -> list[Int[Tensor, "_"]]:
    """Cut the raster into `count` runs, as equal as can be: the first runs take what is left over."""
    return [part for part in torch.arange(grid[0] * grid[1]).tensor_split(count) if len(part)]


def crops(grid: tuple[int, int], side: int) -> list[Int[Tensor, "_"]]:
    """Cut the image into `side` bands of `side` rectangles each, as equal as can be."""
    bands = torch.arange(grid[0] * grid[1]).view(grid).tensor_split(side)
    parts = [part.flatten() for band in bands for part in band.tensor_split(side, dim=1)]
    return [part for part in parts if len(part)]


def divide(keep: int, weights: Float[Tensor, "image chunk"]) -> Int[Tensor, "image chunk"]:
    """Divide `keep` in proportion to `weights`: quotas are rounded down, and the largest get one more each until none is left."""
    quotas = (weights / (weights.sum(dim=1, keepdim=True) + EPSILON) * keep).floor().long()
    return quotas + (ranking(weights).argsort(dim=1) < keep - quotas.sum(dim=1, keepdim=True))


def relieve(
    quotas: Int[Tensor, "image chunk"], sizes: list[int], weights: Float[Tensor, "image chunk"]
) -> Int[Tensor, "image chunk"]:
    """Change `quotas` so that no chunk gets more than its size; the sums stay.

    What a full chunk cannot take goes to the heaviest chunks that have room.
    """
    images = zip(quotas.tolist(), ranking(weights).tolist(), strict=True)
    return torch.tensor([_relieved(quota, sizes, heaviest) for quota, heaviest in images], device=quotas.device)


def _relieved(quotas: list[int], sizes: list[int], heaviest: list[int]) -> list[int]:
    fitting = [min(quota, size) for quota, size in zip(quotas, sizes, strict=True)]
    while missing := sum(quotas) - sum(fitting):
        roomy = [chunk for chunk in heaviest if fitting[chunk] < sizes[chunk]]
        for chunk in roomy[:missing]:
            fitting[chunk] += 1
    return fitting


def apportion(
    keep: int,
    weights: Int[Tensor, " group"],
    least: Int[Tensor, " group"],
    most: Int[Tensor, " group"],
) -> Int[Tensor, " group"]:
    """Divide `keep` among groups within bounds.

    Each group gets `least`; the rest is divided in proportion to `weights`, and what `most` cuts off goes to the heaviest
    groups. Shares are laid one behind the other and rounded where they end, instead of each on its own, so that they add up.
    Rounding is in float32, with halves to even.
    """
    ends = ((weights / weights.sum()).cumsum(0) * (keep - least.sum())).round().long()
    quotas = torch.minimum(least + ends.diff(prepend=ends.new_zeros(1)), most)
    heaviest = ranking(weights.float())
    room = (most - quotas)[heaviest]
    before = room.cumsum(0) - room
    more = torch.minimum((keep - quotas.sum() - before).clamp_min(0), room)
    return quotas.index_add(0, heaviest, more)
