"""The patches at one end of the raster: the baseline that shows what a position alone is worth."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FirstLast(Pruner):
    """The first patches in raster order, the top of the image, or the last ones, its bottom.

    The last ones stand next to the question, where a language model looks most: what they win over the first
    is the bias that attention-based methods inside it have to beat.
    """

    end: Literal["first", "last"] = "first"
    """Which end of the raster is kept."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The same `keep` patches for every image, ascending."""
        start = 0 if self.end == "first" else tokens.patches - keep
        return torch.arange(start, start + keep, device=tokens.device).expand(len(tokens.image_ids), -1)
