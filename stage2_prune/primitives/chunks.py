"""Parts of an image, and a budget divided among them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.top_k import ranking

EPSILON = 1e-6


def runs(grid: tuple[int, int], count: int) -> list[Int[Tensor, "_"]]:
    """The raster cut into `count` runs, as equal as can be: the first ones take what is left over."""
    return [part for part in torch.arange(grid[0] * grid[1]).tensor_split(count) if len(part)]


def crops(grid: tuple[int, int], side: int) -> list[Int[Tensor, "_"]]:
    """The image cut into `side` bands of `side` rectangles each, as equal as can be."""
    bands = torch.arange(grid[0] * grid[1]).view(grid).tensor_split(side)
    parts = [part.flatten() for band in bands for part in band.tensor_split(side, dim=1)]
    return [part for part in parts if len(part)]


def divide(keep: int, weights: Float[Tensor, " chunk"]) -> list[int]:
    """`keep` in proportion to `weights`: rounded down, and what is left goes one each to the largest."""
    quotas = (weights / (weights.sum() + EPSILON) * keep).floor().long().tolist()
    for chunk in ranking(weights)[: keep - sum(quotas)].tolist():
        quotas[chunk] += 1
    return quotas


def relieve(quotas: list[int], sizes: list[int], weights: Float[Tensor, " chunk"]) -> list[int]:
    """The same number in all, where no chunk gets more than its size: the heaviest with room take the rest."""
    fitting = [min(quota, size) for quota, size in zip(quotas, sizes, strict=True)]
    while missing := sum(quotas) - sum(fitting):
        roomy = [chunk for chunk in ranking(weights).tolist() if fitting[chunk] < sizes[chunk]]
        for chunk in roomy[:missing]:
            fitting[chunk] += 1
    return fitting


def apportion(
    keep: int,
    weights: Int[Tensor, " group"],
    least: Int[Tensor, " group"],
    most: Int[Tensor, " group"],
) -> list[int]:
    """`keep` within bounds: what `least` leaves in proportion to `weights`, and what `most` cuts off to the heaviest.

    Shares are rounded where they end, not one by one, so that they add up; in float32, as halves are rounded to even.
    """
    ends = ((weights / weights.sum()).cumsum(0) * (keep - least.sum())).round().long()
    quotas = torch.minimum(least + ends.diff(prepend=ends.new_zeros(1)), most)
    for group in ranking(weights.float()):
        quotas[group] += torch.minimum(most[group] - quotas[group], keep - quotas.sum())
    return quotas.tolist()
