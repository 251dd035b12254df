"""Patches that the vision tower's CLS token attends to most.

FasterVLM (Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", arXiv
2412.01818). Published: the mean over heads of the CLS row, top-k, raster order, compact positions.
Theia-4869/FasterVLM at f5d5f12; reimplemented from the formula.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class ClsAttention(Pruner):
    """Top-k of CLS attention in the layer that produces `raw`, averaged over heads."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})
    positions: ClassVar[Positions] = "compact"

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The `keep` most attended patches of each image, ascending; of equals the lower index."""
        return top_k(tokens.arrays["cls_attention"].mean(dim=1), keep)
