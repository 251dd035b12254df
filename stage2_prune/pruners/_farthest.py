"""Greedy max-min diversity, by which DivPrune and ZOO-Prune select: each step takes the patch farthest from all kept ones."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def farthest_first(
    distance: Float[Tensor, "image patch patch"],
    first: Float[Tensor, "image patch"],
    keep: int,
    weight: Float[Tensor, "image patch"] | float = 1.0,
) -> Int[Tensor, "image {keep}"]:
    """Return patches in the order in which the greedy takes them, all images at once; of equal patches the lower index.

    The first patch has the highest `first`. Each later patch has the highest distance to its nearest kept patch, times
    `weight`.
    """
    image = torch.arange(len(distance), device=distance.device)
    taken = torch.zeros_like(first, dtype=torch.bool)
    nearest = torch.full_like(first, torch.inf)
    kept: list[Tensor] = []
    for _ in range(keep):
        score = (nearest * weight if kept else first).masked_fill(taken, -torch.inf)
        kept.append(score.argmax(dim=-1))
        taken[image, kept[-1]] = True
        nearest = torch.minimum(nearest, distance[image, kept[-1]])
    return torch.stack(kept, dim=-1)
