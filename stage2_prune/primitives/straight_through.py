"""Straight-through estimators: a hard decision whose gradient is that of the soft decision behind it."""

from jaxtyping import Bool, Float
from torch import Tensor

FLOOR = 1e-4
"""The weight of a dropped patch in a softmax while training: log(weight) has no gradient at 0."""


def straight_through(
    hard: Bool[Tensor, "image patch"], soft: Float[Tensor, "image patch"], floor: float = FLOOR
) -> Float[Tensor, "image patch"]:
    """Return exactly 1 where `hard` and `floor` elsewhere, with the gradient of `soft` everywhere."""
    return hard.to(soft.dtype).clamp_min(floor) + (soft - soft.detach())
