"""How alike the patches of an image are."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cosine_similarity(features: Float[Tensor, "image patch width"]) -> Float[Tensor, "image patch patch"]:
    """Compute the cosine of every two patches of an image, in float32, or in float64 where `features` are float64.

    Images are taken one by one: the last bits of a GEMM may depend on its shape, and an image may not depend on its batch.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    return torch.stack([unit @ unit.T for unit in map(_unit, wide)])


def _unit(features: Float[Tensor, "patch width"]) -> Float[Tensor, "patch width"]:
    return F.normalize(features, dim=-1)
