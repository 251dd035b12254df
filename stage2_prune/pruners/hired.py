"""HiRED on one view of an image: patches by the CLS attention summed over heads.

HiRED (Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
AAAI 2025, arXiv 2408.10945); official code hasanar1f/HiRED at 502d6dd, reimplemented from the formula. Published: the sum over
heads in the layer that produces `raw`, top-k, raster order, compact positions. The official code keeps a fraction of the
patches, rounded down: here a budget states the number itself.

The other half of the method divides a budget among the crops of LLaVA-NeXT by the first layer's CLS attention; with one view
per image, as in LLaVA-1.5, there is nothing to divide.
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
class Hired(Pruner):
    """Keeps the patches with the highest CLS attention summed over heads; on one view `cls_attention` ranks alike, up to
    rounding.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})
    nested: ClassVar[bool] = True
    positions: ClassVar[Positions] = "compact"

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` most attended patches of each image, most attended first; of equal patches the lower index."""
        return ranking(tokens.arrays["cls_attention"].sum(dim=1))[:, :keep]
