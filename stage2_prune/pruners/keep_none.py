"""No visual token at all: what the language model answers blind, the lower reference of every curve."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.pruning.pruner import BudgetKind, Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class KeepNone(Pruner):
    """Keeps nothing; with `original` positions the text stays where it would stand after all patches."""

    budget: ClassVar[BudgetKind] = "fixed"

    def fixed_keep(self, patches: int) -> int:
        """Return zero, whatever the image."""
        return 0

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return an empty index; keep is 0."""
        return torch.empty(len(tokens.image_ids), keep, dtype=torch.long, device=tokens.device)
