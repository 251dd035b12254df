"""Attended patches, a quota of them from every chunk of the image.

HoloV (Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", NeurIPS
2025, arXiv 2510.02912); official code obananas/HoloV, llava/model/utils.py at 1d2e65e, reimplemented from the formula.
Published: CLS attention averaged over heads, cosines of `projected`, 16 chunks, alpha 0.09, compact positions; order: chunk
by chunk, by falling attention inside, and in raster order where a chunk is kept whole.

Quirks: the paper speaks of crops, the code cuts the raster into runs of 36 patches, 1.5 rows each. Where a chunk is given more
than it has, the code fills up with zero vectors. The variance of similarities is rescaled to the mean attention, so it multiplies
every chunk's weight by the same 1 + alpha and moves nothing. A chunk of one patch is not multiplied by 1000.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.primitives.chunks import crops, divide, relieve, runs
from stage2_prune.primitives.nearest import one_hot
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruners._chunk_weight import chunk_weight
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class Holov(Pruner):
    """The budget divided among chunks by attention and variety, and the most attended patches of each chunk."""

    needs: ClassVar[frozenset[str]] = frozenset({"projected", "cls_attention"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    chunks: PositiveInt = 16
    """Chunks of an image; as `paper`, its square root is the number of bands and of columns of crops."""
    alpha: NonNegativeFloat = 0.09
    """Weight of the variance of similarities."""
    quirks: Literal["official", "paper", "fixed"] = "fixed"
    """`fixed`: what a full chunk cannot take goes to the next best ones, otherwise as the official code;
    `official`: zero vectors in its place; `paper`: as `fixed`, with crops instead of runs of the raster."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """`keep` patches of each image, chunk by chunk; raises PrunerMisused where the official code keeps fewer."""
        chosen = self._chosen(tokens, keep)
        if any(len(index) < keep for index in chosen):
            what = f"the official HoloV fills up to {keep} tokens with zero vectors, which are no patches"
            raise PrunerMisused(f"{what}: call prune, choose another budget or set quirks to fixed")
        return torch.stack(chosen)

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """The selection; `official` a merge, as its zero vectors are sums of nothing."""
        if self.quirks != "official":
            return Pruned(self.select(tokens, keep))
        picks = [one_hot(index, tokens.patches) for index in self._chosen(tokens, keep)]
        filled = [F.pad(rows, (0, 0, 0, keep - len(rows))) for rows in picks]
        return Pruned(merge=Merge(torch.stack(filled), "projected"))

    def _chosen(self, tokens: VisualTokens, keep: int) -> list[Int[Tensor, " kept"]]:
        of_paper = self.quirks == "paper"
        parts = crops(tokens.grid, math.isqrt(self.chunks)) if of_paper else runs(tokens.grid, self.chunks)
        chunks = [part.to(tokens.device) for part in parts]
        images = zip(tokens.arrays["projected"], tokens.arrays["cls_attention"].mean(dim=1), strict=True)
        return [self._choose(features.float(), attention, chunks, keep) for features, attention in images]

    def _choose(
        self,
        features: Float[Tensor, "patch embed"],
        attention: Float[Tensor, " patch"],
        chunks: list[Int[Tensor, "_"]],
        keep: int,
    ) -> Int[Tensor, " kept"]:
        lone = 1e3 if self.quirks == "paper" else 1.0
        weights = torch.stack([chunk_weight(features[c], attention[c], self.alpha, lone) for c in chunks])
        quotas = divide(keep, weights)
        if self.quirks != "official":
            quotas = relieve(quotas, list(map(len, chunks)), weights)
        pairs = zip(chunks, quotas, strict=True)
        return torch.cat([c if q >= len(c) else c[ranking(attention[c])[:q]] for c, q in pairs])
