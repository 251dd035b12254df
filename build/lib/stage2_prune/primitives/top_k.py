"""The one top-k of all scoring methods: it is deterministic, and ties go to the lower patch index."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.errors import PrunerMisused


def ranking(scores: Float[Tensor, "*image patch"]) -> Int[Tensor, "*image patch"]:
    """Return indices by falling score, of equal scores the lower index first.

    `torch.topk` leaves the order of equal scores open, and with it the selection at the cut; a stable sort does not. A sort
    would place NaN as the highest score, so NaN is refused with PrunerMisused.
    """
    if torch.isnan(scores).any():
        raise PrunerMisused(
            "expected scores to rank patches by, some are NaN: check the arrays or the pruner's weights"
        )
    return scores.sort(dim=-1, descending=True, stable=True).indices


def top_k(scores: Float[Tensor, "image patch"], keep: int) -> Int[Tensor, "image {keep}"]:
    """Return the indices of the `keep` highest scores of each image, ascending."""
    return ranking(scores)[:, :keep].sort(dim=-1).values
