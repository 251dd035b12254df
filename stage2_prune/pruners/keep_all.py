"""No pruning: the unpruned model, the upper reference of every curve."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.pruning.pruner import BudgetKind, Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class KeepAll(Pruner):
    """Keeps every visual token, in raster order."""

    budget: ClassVar[BudgetKind] = "fixed"

    def fixed_keep(self, patches: int) -> int:
        """Return the number of patches."""
        return patches

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return 0, 1, …, keep - 1; keep is the number of patches."""
        return torch.arange(keep, device=tokens.device).expand(len(tokens.image_ids), -1)
