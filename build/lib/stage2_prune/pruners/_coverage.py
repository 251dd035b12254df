"""Greedy coverage: always the patch that raises the most what the kept ones cover, as SCOPE and MMTok select."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHED = 512
"""Rows of values that are worked on at once, so that they stay in a processor's cache."""

Score = Callable[[Float[Tensor, "image patch"]], Float[Tensor, "image patch"]]


def cover(
    value: Float[Tensor, "image row patch"], keep: int, score: Score = lambda gain: gain
) -> Int[Tensor, "image {keep}"]:
    """Patches in the order in which the greedy finds them, all images at once; of equals the lower index.

    A row is covered by the highest of its values at the kept patches, by 0 at first. A patch's gain is by how much it
    raises the sum over rows; what `score` makes of the gains decides.
    """
    gains = Gains(value)
    taken = torch.zeros_like(gains.of, dtype=torch.bool)
    found: list[Tensor] = []
    for _ in range(keep):
        found.append(score(gains.of).masked_fill(taken, -torch.inf).argmax(dim=-1))
        taken.scatter_(1, found[-1][:, None], True)
        gains.take(found[-1])
    return torch.stack(found, dim=-1)


class Gains:
    """How much more every patch would cover, of all images at once.

    A patch that is taken changes the cover of few rows, and only their part of the gains is taken off: over all steps
    that is some N log(keep) rows of an image's values instead of N * keep.
    """

    def __init__(self, value: Float[Tensor, "image row patch"]) -> None:
        self.of: Float[Tensor, "image patch"] = torch.stack([one.double().clamp_(min=0).sum(dim=0) for one in value])
        """float64: gains are updated, not summed afresh, and in float32 the rounding would add up."""
        self._value = value
        self._rows = value.flatten(0, 1)
        self._image = torch.arange(len(value), device=value.device)
        self._cover = value.new_zeros(len(self._rows))

    def take(self, patch: Int[Tensor, " image"]) -> None:
        """Cover with one patch of each image."""
        now = self._value[self._image, :, patch].flatten()
        for rows in (now > self._cover).nonzero()[:, 0].split(CACHED):
            before = self._cover[rows, None]
            covered = self._rows.index_select(0, rows).clamp_(before, now[rows, None])
            image = rows // self._value.shape[1]
            self.of.index_add_(0, image, covered.double().sub_(before), alpha=-1)
        self._cover = torch.maximum(self._cover, now)
