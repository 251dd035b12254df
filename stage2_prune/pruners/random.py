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
    """Draws patches uniformly without replacement, as a function of (seed, image id) alone.

    There is one permutation per image, and its first `keep` patches are kept: a smaller budget is a subset of a larger one.
    """

    randomised: ClassVar[bool] = True
    nested: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the draw; an evaluation averages over this seed and those that follow it."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` random patches of each image, in the order in which they are drawn."""
        drawn = [permutation(self.seed, name, tokens.patches)[:keep] for name in tokens.image_ids]
        return torch.from_numpy(np.stack(drawn).astype(np.int64)).to(tokens.device)
