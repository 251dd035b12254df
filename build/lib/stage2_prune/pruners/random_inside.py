"""Patches drawn at random among those that show the image: the baseline of what padding costs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from pydantic import NonNegativeInt
from torch import Tensor

from stage2_prune.primitives.draw import permutation
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class RandomInside(Pruner):
    """`random` without the padding around an image: patches that show nothing of it come last, where a budget needs them.

    The draw is that of `random`, passed over twice: on an image without padding both keep the same. A patch that shows
    any part of the image counts as inside.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image_area"})
    randomised: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the draw; an evaluation averages over this one and those that follow."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """`keep` random patches of each image, ascending."""
        outside = (tokens.arrays["image_area"] <= 0).cpu()
        drawn = (torch.from_numpy(permutation(self.seed, name, tokens.patches)) for name in tokens.image_ids)
        found = [order[outside[image][order].sort(stable=True).indices[:keep]] for image, order in enumerate(drawn)]
        return torch.stack(found).sort(dim=-1).values.to(tokens.device)
