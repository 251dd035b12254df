"""Salient patches that cover what the kept ones do not yet.

SCOPE (Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025,
arXiv 2510.24214); official code kinredon/SCOPE, scope/clip_encoder.py at 6bf7306, reimplemented from the formula.
Published: cosine of `raw`, CLS attention summed over heads, alpha 1, `multi`, raster order, compact positions. The
official code takes alpha and the combination from environment variables and divides the budget by the batch size:
here they are fields, and the budget is each image's own.

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
    """Greedy facility location times saliency: always the patch with the largest gain x CLS attention ** alpha.

    The gain is by how much the patch raises the sum, over all patches, of the cosine to the nearest kept one.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention"})
    positions: ClassVar[Positions] = "compact"

    alpha: NonNegativeFloat = 1.0
    """Exponent of the saliency."""
    combine: Literal["multi", "add"] = "multi"
    """Whether gain and saliency are multiplied or added."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """`keep` patches of each image, ascending; of equals the lower index."""
        saliency = tokens.arrays["cls_attention"].double().sum(dim=1) ** self.alpha
        found = cover(
            cosine_similarity(tokens.arrays["raw"]),
            keep,
            lambda gain: gain * saliency if self.combine == "multi" else gain + saliency,
        )
        return found.sort(dim=-1).values
