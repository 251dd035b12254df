"""A differentiable top-k: how much of each patch to keep, so that the amounts add up to the budget."""

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.errors import PrunerMisused

PARTS = 16
"""Parts into which a round divides the threshold's bracket: few rounds are few kernels on a GPU, and as quick on a CPU."""
ROUNDS = 16
"""Rounds, each of which keeps one part of the bracket: 16 ** 16 parts in all exhaust float64."""
_FLAT = 1e-100
"""The smallest slope that is divided by: below it a top-k is hard, and nothing depends on its threshold."""


def soft_top_k(scores: Float[Tensor, "image patch"], keep: int, temperature: float) -> Float[Tensor, "image patch"]:
    """Compute weights in [0, 1] that sum to `keep` in each image: `sigmoid((score - threshold) / temperature)`.

    Each image has its own threshold; gradients flow through the threshold too. A low `temperature` (in
    units of the scores) gives nearly hard weights. At keep = patches no finite threshold exists: the weights are exactly 1 and
    their gradient is 0. Raises PrunerMisused where `keep` is not in 1..patches and where scores are not finite.
    """
    patches = scores.shape[-1]
    _check(scores, keep)
    if keep == patches:
        return 1 + 0 * scores  # still attached to the scores, so that a training step needs no special case
    return _share(scores, torch.ones_like(scores), keep, temperature)


def soft_share(
    scores: Float[Tensor, "image patch"], present: Float[Tensor, "image patch"], keep: int, temperature: float
) -> Float[Tensor, "image patch"]:
    """Compute the share of each patch's weight that a later top-k leaves: the weights `present` times the shares sum to `keep`.

    A share is `sigmoid((score - threshold) / temperature)`, so that a patch that is gone stays gone and takes no part. With
    weights of 1 everywhere it is the soft top-k. Gradients flow through the threshold, to scores and to `present`. `keep` must
    be below the sum of `present`. Raises PrunerMisused as `soft_top_k` does.
    """
    _check(scores, keep)
    return _share(scores, present, keep, temperature)


def _share(
    scores: Float[Tensor, "image patch"], present: Float[Tensor, "image patch"], keep: int, temperature: float
) -> Float[Tensor, "image patch"]:
    """Compute the shares of `soft_share`, of what was checked."""
    exact, weight = scores.double(), present.double()
    share = keep / weight.detach().sum(-1, keepdim=True)
    assert (share < 1).all(), "a stage drops something of what is left"
    threshold = _threshold(exact.detach(), weight.detach(), keep, temperature, share)
    with torch.no_grad():
        # d threshold / d score and d threshold / d present, from differentiating sum(present * share) = keep.
        kept = torch.sigmoid((exact - threshold) / temperature)
        slope = weight * kept * (1 - kept)
        total = slope.sum(-1, keepdim=True).clamp_min(_FLAT)
    by_score = slope / total * (exact - exact.detach())
    by_weight = temperature * kept / total * (weight - weight.detach())
    threshold = threshold + (by_score + by_weight).sum(-1, keepdim=True)
    return torch.sigmoid((exact - threshold) / temperature).to(scores.dtype)


def _check(scores: Float[Tensor, "image patch"], keep: int) -> None:
    """Refuse a budget that is none, and scores that are not finite."""
    patches = scores.shape[-1]
    if not 1 <= keep <= patches:
        raise PrunerMisused(f"expected a budget of 1..{patches} visual tokens, got {keep}: change the budget")
    if not torch.isfinite(scores).all():
        raise PrunerMisused(
            "expected finite scores, some are NaN or infinite: check the arrays or lower train.learning_rate"
        )


@torch.no_grad()
def _threshold(
    scores: Float[Tensor, "image patch"],
    present: Float[Tensor, "image patch"],
    keep: int,
    temperature: float,
    share: Float[Tensor, "image 1"],
) -> Float[Tensor, "image 1"]:
    """Find the threshold of each image, between the values at which the lowest and the highest score weigh `share`.

    `share` is the share of `present` that `keep` is.
    """
    scaled = scores / temperature
    low, highest = scaled.amin(-1, keepdim=True), scaled.amax(-1, keepdim=True)
    part = highest - low
    low = low - (share / (1 - share)).log()
    inner = torch.arange(1, PARTS, dtype=scores.dtype, device=scores.device)
    for _ in range(ROUNDS):
        part = part / PARTS
        candidates: Float[Tensor, "image candidate"] = low + part * inner
        amounts = (present[:, None] * (scaled[:, None] - candidates[..., None]).sigmoid_()).sum(-1)
        low = low + part * (amounts > keep).sum(-1, keepdim=True)
    return (low + part / 2) * temperature
