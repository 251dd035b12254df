"""Greedy coverage, by which SCOPE and MMTok select: each step takes the patch that raises the cover of the kept patches most."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CACHED = 512
"""Items whose values are worked on at once, so that they stay in a processor's cache."""

Score = Callable[[Float[Tensor, "image patch"]], Float[Tensor, "image patch"]]


def cover(
    value: Float[Tensor, "image item patch"], keep: int, score: Score = lambda gain: gain
) -> Int[Tensor, "image {keep}"]:
    """Return patches in the order in which the greedy takes them, all images at once; of equal patches the lower index.

    `value` says how well each patch covers each item, where items are whatever the method wants covered. An item's cover is the
    highest of its values at the kept patches, and 0 at first. A patch's gain is the amount by which it raises the sum of
    covers; each step takes the patch for which `score` of the gains is highest.
    """
    gains = Gains(value)
    taken = torch.zeros_like(gains.of, dtype=torch.bool)
    kept: list[Tensor] = []
    for _ in range(keep):
        kept.append(score(gains.of).masked_fill(taken, -torch.inf).argmax(dim=-1))
        taken.scatter_(1, kept[-1][:, None], True)
        gains.take(kept[-1])
    return torch.stack(kept, dim=-1)


class Gains:
    """The gain of every patch, of all images at once, kept up to date while patches are taken.

    A patch that is taken changes the cover of few items, and only their part of the gains is subtracted: over all steps that is
    some N log(keep) items' values of an image instead of N * keep.
    """

    def __init__(self, value: Float[Tensor, "image item patch"]) -> None:
        self.of: Float[Tensor, "image patch"] = torch.stack(
            [image.double().clamp_(min=0).sum(dim=0) for image in value]
        )
        """Gains in float64: they are updated, not summed afresh, and in float32 the rounding would add up."""
        self._value = value
        self._items = value.flatten(0, 1)
        self._image = torch.arange(len(value), device=value.device)
        self._cover = value.new_zeros(len(self._items))

    def take(self, patch: Int[Tensor, " image"]) -> None:
        """Take one patch of each image, and update covers and gains."""
        now = self._value[self._image, :, patch].flatten()
        for items in (now > self._cover).nonzero()[:, 0].split(CACHED):
            before = self._cover[items, None]
            covered = self._items.index_select(0, items).clamp_(before, now[items, None])
            image = items // self._value.shape[1]
            self.of.index_add_(0, image, covered.double().sub_(before), alpha=-1)
        self._cover = torch.maximum(self._cover, now)
