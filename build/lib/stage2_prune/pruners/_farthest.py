"""Greedy max-min diversity: always the patch whose nearest kept patch is farthest away, as DivPrune and ZOO-Prune select."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def farthest_first(
    distance: Float[Tensor, "image patch patch"],
    first: Float[Tensor, "image patch"],
    keep: int,
    weight: Float[Tensor, "image patch"] | float = 1.0,
) -> Int[Tensor, "image {keep}"]:
    """Patches in the order in which the greedy finds them, all images at once; of equals the lower index.

    The first has the highest `first`; then distances to the nearest kept patch are multiplied by `weight`.
    """
    image = torch.arange(len(distance), device=distance.device)
    taken = torch.zeros_like(first, dtype=torch.bool)
    nearest = torch.full_like(first, torch.inf)
    found: list[Tensor] = []
    for _ in range(keep):
        score = (nearest * weight if found else first).masked_fill(taken, -torch.inf)
        found.append(score.argmax(dim=-1))
        taken[image, found[-1]] = True
        nearest = torch.minimum(nearest, distance[image, found[-1]])
    return torch.stack(found, dim=-1)
