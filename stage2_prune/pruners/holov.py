"""Attended patches, a quota of them from every chunk of the image.

HoloV (Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention", NeurIPS 2025,
arXiv 2510.02912); official code obananas/HoloV, llava/model/utils.py at 1d2e65e, reimplemented from the formula. Published: CLS
attention averaged over heads, cosines of `projected`, 16 chunks, alpha 0.09, compact positions; chunk by chunk, by falling
attention inside, and in raster order where a chunk is kept whole.

Quirks: the paper speaks of crops, the code cuts the raster into runs of 36 patches, 1.5 rows each. Where a chunk is given more
than it has, the code fills up with zero vectors. The variance of similarities is rescaled to the mean attention, so it
multiplies every chunk's weight by the same 1 + alpha and moves nothing. A chunk of one patch is not multiplied by 1000.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.primitives.chunks import crops, divide, relieve, runs
from stage2_prune.primitives.nearest import one_hot
from stage2_prune.primitives.windows import rank_in_window
from stage2_prune.pruners._chunk_weight import chunk_weights
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class Holov(Pruner):
    """Divides the budget among chunks by attention and variety, and keeps the most attended patches of each chunk."""

    needs: ClassVar[frozenset[str]] = frozenset({"projected", "cls_attention"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    chunks: PositiveInt = 16
    """Chunks of an image; as `paper`, its square root is the number of bands and of columns of crops."""
    alpha: NonNegativeFloat = 0.09
    """Weight of the variance of similarities."""
    quirks: Literal["official", "paper", "fixed"] = "fixed"
    """`official`: zero vectors fill up; `fixed`: the next best chunks take what a full chunk cannot; `paper`: `fixed`, with
    crops.
    """

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image, chunk by chunk; raise PrunerMisused where the official code keeps fewer."""
        order, counts = self._chosen(tokens, keep)
        if min(counts) < keep:
            problem = f"the official HoloV fills up to {keep} tokens with zero vectors, which are no patches"
            raise PrunerMisused(f"{problem}: call prune, choose another budget or set quirks to fixed")
        return order[:, :keep]

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return the selection; `official` returns a merge, as its zero vectors are sums of nothing."""
        if self.quirks != "official":
            return Pruned(self.select(tokens, keep))
        order, counts = self._chosen(tokens, keep)
        picks = one_hot(order[:, :keep], tokens.patches)
        for image, count in zip(picks, counts, strict=True):
            image[count:] = 0
        return Pruned(merge=Merge(picks, "projected"))

    def _chosen(self, tokens: VisualTokens, keep: int) -> tuple[Int[Tensor, "image patch"], list[int]]:
        """Return all patches of each image, those that are kept first, and how many of each image are kept."""
        cut, count = (crops, math.isqrt(self.chunks)) if self.quirks == "paper" else (runs, self.chunks)
        chunks = [part.to(tokens.device) for part in cut(tokens.grid, count)]
        attention, lone = tokens.arrays["cls_attention"].mean(dim=1), 1e3 if self.quirks == "paper" else 1.0
        weights = chunk_weights(tokens.arrays["projected"].float(), attention, chunks, self.alpha, lone)
        sizes = list(map(len, chunks))
        quotas = divide(keep, weights)
        if self.quirks != "official":
            quotas = relieve(quotas, sizes, weights)
        size = torch.tensor(sizes, device=tokens.device)
        chunk = torch.empty(tokens.patches, dtype=torch.long, device=tokens.device)
        chunk[torch.cat(chunks)] = torch.arange(len(chunks), device=tokens.device).repeat_interleave(size)
        rank, patch = rank_in_window(attention, chunk), torch.arange(tokens.patches, device=tokens.device)
        quota = quotas[:, chunk]
        turn = torch.where(quota >= size[chunk], patch, rank)  # a chunk that is kept whole keeps its raster order
        late = (rank >= quota) * len(chunks)
        order = ((late + chunk) * tokens.patches + turn).argsort(dim=1)
        return order, torch.minimum(quotas, size).sum(dim=1).tolist()
