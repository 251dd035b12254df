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

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.pruner import Pruner
from stage2_prune.similarity import cosine_similarity
from stage2_prune.tokens import VisualTokens

CACHED = 512
"""Rows of similarities that are worked on at once, so that they stay in a processor's cache."""


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
        gains = Gains(cosine_similarity(tokens.arrays["raw"]))
        taken = torch.zeros_like(saliency, dtype=torch.bool)
        found: list[Tensor] = []
        for _ in range(keep):
            score = gains.of * saliency if self.combine == "multi" else gains.of + saliency
            found.append(score.masked_fill(taken, -torch.inf).argmax(dim=-1))
            taken.scatter_(1, found[-1][:, None], True)
            gains.take(found[-1])
        return torch.stack(found, dim=-1).sort(dim=-1).values


class Gains:
    """How much more every patch would cover, of all images at once.

    A patch that is taken changes the cover of few others, and only their part of the gains is taken off: over all
    steps that is some N log(keep) rows of an image's similarity instead of N * keep.
    """

    def __init__(self, similarity: Float[Tensor, "image patch patch"]) -> None:
        self.of: Float[Tensor, "image patch"] = torch.stack(
            [one.double().clamp_(min=0).sum(dim=0) for one in similarity]
        )
        """float64: gains are updated, not summed afresh, and in float32 the rounding would add up."""
        self._patches = similarity.shape[-1]
        self._rows = similarity.flatten(0, 1)
        self._first = torch.arange(len(similarity), device=similarity.device) * self._patches
        self._cover = similarity.new_zeros(len(self._rows))

    def take(self, patch: Int[Tensor, " image"]) -> None:
        """Cover with one patch of each image."""
        now = self._rows[self._first + patch].flatten()
        for rows in (now > self._cover).nonzero()[:, 0].split(CACHED):
            before = self._cover[rows, None]
            covered = self._rows.index_select(0, rows).clamp_(before, now[rows, None])
            self.of.index_add_(0, rows // self._patches, covered.double().sub_(before), alpha=-1)
        self._cover = torch.maximum(self._cover, now)
