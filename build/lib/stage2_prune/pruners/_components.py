"""Principal components of an image's patches, as PruneSID groups them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def heaviest_component(raw: Float[Tensor, "patch hidden"], count: int, seed: int | None) -> Int[Tensor, " patch"]:
    """Which of `count` principal components of sigmoid(features) each patch weighs most in.

    From the randomised decomposition that the official code calls, drawn from `seed`; from the exact one without.
    """
    features = raw.sigmoid().T
    if seed is None:
        axes = torch.linalg.svd(features - features.mean(dim=0), full_matrices=False).Vh[:count].T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed % 2**63)
            axes = torch.pca_lowrank(features, q=count)[2]
    return axes.abs().argmax(dim=-1)
