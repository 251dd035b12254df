"""Assigning patches to the kept patch that each is most like, and one-hot weights."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def assigned(
    features: Float[Tensor, "patch width"], targets: Int[Tensor, " target"], others: Int[Tensor, " other"]
) -> Float[Tensor, "target patch"]:
    """Assign each of `others` to the target with the highest cosine of features: 1 where it is assigned, else 0.

    Of equal targets the first is taken; there must be at least one target. The function takes one image, in float32, because
    the last bits of a GEMM may depend on its shape.
    """
    unit = F.normalize(features.float(), dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(dim=1)
    members = unit.new_zeros(len(targets), len(features))
    members[nearest, others] = 1
    return members


def complement(chosen: Int[Tensor, " chosen"], patches: int) -> Int[Tensor, " rest"]:
    """Return all patches but the chosen, ascending."""
    left = torch.ones(patches, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero()[:, 0]


def one_hot(index: Int[Tensor, "*image kept"], rows: int) -> Float[Tensor, "*image kept {rows}"]:
    """Express a selection as merge weights: row i picks `index[i]`."""
    return F.one_hot(index, rows).float()
