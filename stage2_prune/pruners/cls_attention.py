"""Patches that the vision tower's CLS token attends to most.

FasterVLM (Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", arXiv 2412.01818),
Theia-4869/FasterVLM at f5d5f12, reimplemented from the formula. Published: the mean over heads of the CLS row's attention,
top-k, raster order, compact positions.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class ClsAttention(Pruner):
    """Keeps the patches with the highest CLS attention in the layer that produces `raw`, averaged over heads."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})
    nested: ClassVar[bool] = True
    positions: ClassVar[Positions] = "compact"

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` most attended patches of each image, most attended first; of equal patches the lower index."""
        return ranking(tokens.arrays["cls_attention"].mean(dim=1))[:, :keep]
