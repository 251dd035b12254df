"""LLaVA-PruMerge: the patches that CLS attends to most, each with what is like it added.

Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388;
42Shawn/LLaVA-PruMerge at 097c041. Reimplemented from its maths.

Reads the CLS row's attention and the keys of the tower's last layer, both over its full width, and `raw`. Published: 32 nearest
by the cosine of keys, one token more for all patches that are not kept; `plus` (PruMerge+, its fixed-count path) takes half of
the patches by attention and half at equal steps. The adaptive count (outliers of the attention) is left out, as a batch would be
ragged: `keep` says how many tokens there are, the last one included. Order: by falling attention, then by step, then the last
token, which stands nowhere in the image, so positions are compact.

Quirks: weights are not normalised (1 for the patch itself, their attention for the others), and `plus` may take a patch twice
and loses as many of the first patches that are not kept. `fixed` takes means weighted by attention, distinct patches, in
raster order.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.nearest import complement, one_hot
from stage2_prune.pruner import Order, Pruner
from stage2_prune.tokens import Merge, Pruned, VisualTokens
from stage2_prune.top_k import ranking


@dataclass(frozen=True)
class PruMerge(Pruner):
    """Top-k of CLS attention in the tower's last layer; nearest neighbours are added in raw space, the rest is one token."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "last_layer_attention", "last_layer_keys"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[Order] = "own"

    plus: bool = False
    """PruMerge+: every other patch is one of an even sample of the image."""
    neighbours: PositiveInt = 32
    """Patches that are added to each kept one."""
    quirks: Literal["official", "fixed"] = "official"
    """How weights are normalised and patches repeated: see above."""

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Weights over the patches."""
        arrays = zip(tokens.arrays["last_layer_attention"], tokens.arrays["last_layer_keys"], strict=True)
        weights = [self._weights(attention, keys, self._kept(attention, keep - 1)) for attention, keys in arrays]
        return Pruned(merge=Merge(torch.stack(weights), "raw"))

    def _kept(self, attention: Float[Tensor, " patch"], count: int) -> Int[Tensor, " {count}"]:
        patches, sampled = len(attention), count // 2 if self.plus else 0
        step = patches // max(sampled, 1)
        sample = torch.arange(sampled, device=attention.device) * step + step // 2
        if self.quirks == "official":
            return torch.cat([ranking(attention)[: count - sampled], sample])
        return ranking(attention.index_fill(0, sample, torch.inf))[:count].sort().values

    def _weights(
        self, attention: Float[Tensor, " patch"], keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"]
    ) -> Float[Tensor, "kept+1 patch"]:
        patches = len(attention)
        rest = complement(kept, patches)
        rest = rest[len(kept) + len(rest) - patches :]  # as many are lost as patches are kept twice
        near = self._near(keys, kept, torch.cat([kept, rest]))
        own, left = one_hot(kept, patches), one_hot(rest, patches).sum(0, keepdim=True)
        if self.quirks == "official":
            return torch.cat([own + near * attention, left * attention])
        weights = torch.cat([own + near, left]) * attention
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

    def _near(
        self, keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"], pool: Int[Tensor, " patch"]
    ) -> Float[Tensor, "kept patch"]:
        """How often each patch is among the neighbours that a kept one has in the pool, whose first it is itself."""
        unit = F.normalize(keys.float(), dim=-1)
        cosine = (unit[kept] @ unit.T)[:, pool].fill_diagonal_(-torch.inf)
        nearest = cosine.topk(min(self.neighbours, len(pool) - 1)).indices
        chosen = torch.zeros_like(cosine).scatter_(1, nearest, 1)
        return torch.zeros_like(cosine).index_add_(1, pool, chosen)
