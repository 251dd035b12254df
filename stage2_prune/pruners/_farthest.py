"""Greedy max-min diversity, by which DivPrune and ZOO-Prune select: each step takes the patch farthest from all kept ones."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def farthest_first(
    distance: Float[Tensor, "image patch patch"], first: Float[Tensor, "image patch"], keep: int
) -> Int[Tensor, "image {keep}"]:
    """Return patches in the order in which the greedy takes them, all images at once; of equal patches the lower index.

    The first patch has the highest `first`. Each later patch has the highest distance to its nearest kept patch, where row i of
    `distance` holds the distances from patch i. The diagonal of `distance` is overwritten: a kept patch is infinitely near to
    itself, so it is never taken twice.
    """
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    nearest = torch.full_like(first, torch.inf)
    kept = torch.empty(len(first), keep, dtype=torch.long, device=first.device)
    for step in range(keep):
        patch = kept[:, step, None]
        torch.argmax(nearest if step else first, dim=1, keepdim=True, out=patch)
        from_patch = distance.gather(1, patch[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
        torch.minimum(nearest, from_patch, out=nearest)
    return kept
