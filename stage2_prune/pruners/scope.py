"""Salient patches that cover what the kept ones do not yet cover.

SCOPE (Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025, arXiv
2510.24214); official code kinredon/SCOPE, scope/clip_encoder.py at 6bf7306, reimplemented from the formula. Published: cosine
of `raw`, CLS attention summed over heads, alpha 1, `multi`, raster order, compact positions. The official code takes alpha and
the combination from environment variables and divides the budget by the batch size: here both are fields, and each image has
the whole budget.

With alpha 0 and `multi` the saliency is 1 and gains tie exactly; the lower index is taken.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Int
from pydantic import NonNegativeFloat
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruners._coverage import cover
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Scope(Pruner):
    """Greedy facility location times saliency: each step takes the patch with the largest gain x CLS attention ** alpha.

    The gain is the amount by which the patch raises the sum, over all patches, of the cosine to the nearest kept patch.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention"})
    nested: ClassVar[bool] = True
    positions: ClassVar[Positions] = "compact"

    alpha: NonNegativeFloat = 1.0
    """Exponent of the saliency."""
    combine: Literal["multi", "add"] = "multi"
    """Whether gain and saliency are multiplied or added."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image in the order in which they are found; of equal patches the lower index."""
        saliency = tokens.arrays["cls_attention"].double().sum(dim=1) ** self.alpha
        similarity = cosine_similarity(tokens.arrays["raw"])
        if self.combine == "multi":
            return cover(similarity, keep, factor=saliency)
        return cover(similarity, keep, extra=saliency)
