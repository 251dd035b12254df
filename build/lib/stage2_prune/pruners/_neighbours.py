"""PruMerge's merge: to each kept patch what is like it is added, and the rest is one token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.nearest import complement, one_hot


@dataclass(frozen=True)
class Neighbours:
    """`count` patches are added to each kept one; `normalised`, all tokens are means weighted by attention."""

    count: int
    normalised: bool

    def weights(
        self, attention: Float[Tensor, " patch"], keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"]
    ) -> Float[Tensor, "token patch"]:
        """Of one image: a token per kept patch, and one of all others if there are any."""
        patches = len(attention)
        rest = complement(kept, patches)
        rest = rest[len(kept) + len(rest) - patches :]  # as many are lost as patches are kept twice
        near = self._near(keys, kept, torch.cat([kept, rest]))
        own, left = one_hot(kept, patches), one_hot(rest, patches).sum(0, keepdim=True)[: len(rest)]
        if not self.normalised:
            return torch.cat([own + near * attention, left * attention])
        weights = torch.cat([own + near, left]) * attention
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

    def _near(
        self, keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"], pool: Int[Tensor, " patch"]
    ) -> Float[Tensor, "kept patch"]:
        """How often each patch is among the neighbours that a kept one has in the pool, whose first it is itself."""
        unit = F.normalize(keys.float(), dim=-1)
        cosine = (unit[kept] @ unit.T)[:, pool].fill_diagonal_(-torch.inf)
        nearest = cosine.topk(min(self.count, len(pool) - 1)).indices
        chosen = torch.zeros_like(cosine).scatter_(1, nearest, 1)
        return torch.zeros_like(cosine).index_add_(1, pool, chosen)
