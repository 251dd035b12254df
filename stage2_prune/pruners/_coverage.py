"""Greedy coverage, by which SCOPE and MMTok select: each step takes the patch that raises the cover of the kept patches most."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

BITS = 52
"""Binary digits of a sum of values: a float64 holds all of them."""


@torch.no_grad()
def cover(
    value: Float[Tensor, "image item patch"],
    keep: int,
    factor: Float[Tensor, "image patch"] | None = None,
    extra: Float[Tensor, "image patch"] | None = None,
) -> Int[Tensor, "image {keep}"]:
    """Return patches in the order in which the greedy takes them, all images at once; of equal patches the lower index.

    `value` says how well each patch covers each item, where items are whatever the method wants covered. An item's cover is the
    highest of its values at the kept patches, and 0 at first. A patch's gain is the amount by which it raises the sum of
    covers; each step takes the patch with the highest gain x `factor` + `extra`.
    """
    gains = Gains(value)
    factor = torch.ones_like(gains.of) if factor is None else factor
    open_to = torch.zeros_like(gains.of) if extra is None else extra.clone()  # -inf at patches that are taken
    kept = torch.empty(len(value), keep, dtype=torch.long, device=value.device)
    for step in range(keep):
        patch = kept[:, step, None]
        torch.argmax(torch.addcmul(open_to, gains.of, factor), dim=1, keepdim=True, out=patch)
        open_to.scatter_(1, patch, -torch.inf)
        gains.take(patch)
    return kept


class Gains:
    """The gain of every patch, of all images at once, while patches are taken.

    A gain is the sum of max(value - cover, 0), which is half of: sum of |value - cover| + sum of values - sum of covers. So one
    call of `cdist` makes all gains: the sum of a patch's values is one more value of it, of which the cover is 0, and a patch
    without any value measures the covers' sum. Values are halved and rounded to a grid on which float64 adds them without an
    error: gains depend neither on the order of their terms, nor on the device or the batch.
    """

    def __init__(self, value: Float[Tensor, "image item patch"]) -> None:
        halves = _on_a_grid(value.transpose(1, 2).double().clamp_(min=0).mul_(0.5))
        with_sums = torch.cat([halves, halves.sum(dim=2, keepdim=True)], dim=2)
        self._patches = F.pad(with_sums, (0, 0, 0, 1))
        self._cover = torch.zeros_like(self._patches[:, :1])
        self.of: Float[Tensor, "image patch"] = with_sums[..., -1] * 2
        """Gains in float64."""

    def take(self, patch: Int[Tensor, "image 1"]) -> None:
        """Take one patch of each image, and update covers and gains."""
        values = self._patches.gather(1, patch[..., None].expand_as(self._cover))
        cover = self._cover[..., :-1]
        torch.maximum(cover, values[..., :-1], out=cover)
        reached = torch.cdist(self._patches, self._cover, p=1)[..., 0]
        self.of = reached[:, :-1] - reached[:, -1:]


def _on_a_grid(value: Float[Tensor, "image patch item"]) -> Float[Tensor, "image patch item"]:
    """Round values, which are not negative, so that every sum over items of an image's values has at most `BITS` digits."""
    largest_sum = value.amax(dim=1).sum(dim=1)
    grid = torch.ldexp(torch.ones_like(largest_sum), torch.frexp(largest_sum).exponent - BITS)[:, None, None]
    return value.div_(grid).round_().mul_(grid)
