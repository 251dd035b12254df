"""Which of the kept tokens each other one is most like."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def assigned(
    features: Float[Tensor, "patch width"], targets: Int[Tensor, " target"], others: Int[Tensor, " other"]
) -> Float[Tensor, "target patch"]:
    """1 where one of `others` goes to the target whose feature has the highest cosine with its own, else 0.

    Of equal targets the first; there must be one. One image, in float32: a GEMM's last bits may depend on its shape.
    """
    unit = F.normalize(features.float(), dim=-1)
    nearest = (unit[others] @ unit[targets].T).argmax(dim=1)
    found = unit.new_zeros(len(targets), len(features))
    found[nearest, others] = 1
    return found


def complement(chosen: Int[Tensor, " chosen"], patches: int) -> Int[Tensor, " rest"]:
    """All patches but the chosen, ascending."""
    left = torch.ones(patches, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero()[:, 0]


def one_hot(index: Int[Tensor, " kept"], rows: int) -> Float[Tensor, "kept {rows}"]:
    """The merge that is a selection: row i picks `index[i]`."""
    return F.one_hot(index, rows).float()
