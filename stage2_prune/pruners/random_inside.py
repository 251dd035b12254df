"""Patches drawn at random among those that show the image: the baseline that shows what padding costs."""

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
    """Draws like `random`, but without the padding: patches that show nothing of the image come last, where a budget needs
    them.

    The draw is that of `random`, passed over twice: on an image without padding both methods keep the same patches. A patch
    that shows any part of the image counts as inside.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image_area"})
    nested: ClassVar[bool] = True
    randomised: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the draw; an evaluation averages over this seed and those that follow it."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` random patches of each image, in the order in which they are drawn."""
        outside = (tokens.arrays["image_area"] <= 0).cpu()
        drawn = (torch.from_numpy(permutation(self.seed, name, tokens.patches)) for name in tokens.image_ids)
        kept = [draw[outside[image][draw].sort(stable=True).indices[:keep]] for image, draw in enumerate(drawn)]
        return torch.stack(kept).to(tokens.device)
