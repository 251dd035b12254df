"""A differentiable top-k: how much of each patch to keep, so that the amounts add up to the budget."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.errors import PrunerMisused

PARTS = 16
"""Parts into which a round divides the threshold's bracket: few rounds are few kernels on a GPU, and as quick on a CPU."""
ROUNDS = 16
"""Rounds, each of which keeps one part of the bracket: 16 ** 16 parts in all exhaust float64."""


def soft_top_k(scores: Float[Tensor, "image patch"], keep: int, temperature: float) -> Float[Tensor, "image patch"]:
    """Compute weights in [0, 1] that sum to `keep` in each image: `sigmoid((score - threshold) / temperature)`.

    Each image has its own threshold; gradients flow through the threshold too. A low `temperature` (in
    units of the scores) gives nearly hard weights. At keep = patches no finite threshold exists: the weights are exactly 1 and
    their gradient is 0. Raises PrunerMisused where `keep` is not in 1..patches and where scores are not finite.
    """
    patches = scores.shape[-1]
    if not 1 <= keep <= patches:
        raise PrunerMisused(f"expected a budget of 1..{patches} visual tokens, got {keep}: change the budget")
    if not torch.isfinite(scores).all():
        raise PrunerMisused(
            "expected finite scores, some are NaN or infinite: check the arrays or lower train.learning_rate"
        )
    if keep == patches:
        return 1 + 0 * scores  # still attached to the scores, so that a training step needs no special case
    exact = scores.double()
    threshold = _threshold(exact.detach(), keep, temperature)
    with torch.no_grad():
        # d threshold / d score, from differentiating sum(weights) = keep.
        weights = torch.sigmoid((exact - threshold) / temperature)
        slope = weights * (1 - weights)
        share = slope / slope.sum(-1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    threshold = threshold + (share * (exact - exact.detach())).sum(-1, keepdim=True)
    return torch.sigmoid((exact - threshold) / temperature).to(scores.dtype)


@torch.no_grad()
def _threshold(scores: Float[Tensor, "image patch"], keep: int, temperature: float) -> Float[Tensor, "image 1"]:
    """Find the threshold of each image, between the values at which the lowest and the highest score weigh keep / patches."""
    share = keep / scores.shape[-1]
    scaled = scores / temperature
    low, highest = scaled.amin(-1, keepdim=True), scaled.amax(-1, keepdim=True)
    part = highest - low
    low = low - math.log(share / (1 - share))
    inner = torch.arange(1, PARTS, dtype=scores.dtype, device=scores.device)
    for _ in range(ROUNDS):
        part = part / PARTS
        candidates: Float[Tensor, "image candidate"] = low + part * inner
        amounts = (scaled[:, None] - candidates[..., None]).sigmoid_().sum(-1)
        low = low + part * (amounts > keep).sum(-1, keepdim=True)
    return (low + part / 2) * temperature
