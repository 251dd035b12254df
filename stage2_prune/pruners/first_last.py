"""The patches at one end of the raster: the baseline that shows what a position alone is worth."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FirstLast(Pruner):
    """Keeps the first patches in raster order, the top of the image, or the last ones, its bottom.

    The last patches stand next to the question, where a language model looks most: what they win over the first patches is the
    bias that attention-based methods inside it have to beat.
    """

    nested: ClassVar[bool] = True

    end: Literal["first", "last"] = "first"
    """Which end of the raster is kept."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the same `keep` patches for every image, counted from the end of the raster at which they lie."""
        place = torch.arange(keep, device=tokens.device).expand(len(tokens.image_ids), -1)
        return place if self.end == "first" else tokens.patches - 1 - place
