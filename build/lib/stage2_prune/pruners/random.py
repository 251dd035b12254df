"""Patches drawn at random: the baseline that a method has to beat."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from pydantic import NonNegativeInt
from torch import Tensor

from stage2_prune.primitives.draw import permutation
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Random(Pruner):
    """A uniform draw without replacement, a function of (seed, image id) alone.

    One permutation per image, of which the first `keep` are taken: a smaller budget is a subset of a larger
    one.
    """

    randomised: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the draw; an evaluation averages over this one and those that follow."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """`keep` random patches of each image, ascending."""
        drawn = [np.sort(permutation(self.seed, name, tokens.patches)[:keep]) for name in tokens.image_ids]
        return torch.from_numpy(np.stack(drawn).astype(np.int64)).to(tokens.device)
