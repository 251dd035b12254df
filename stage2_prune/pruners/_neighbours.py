"""PruMerge's merge: each kept patch gets the patches most like it added, and all remaining patches become one token."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.nearest import complement, one_hot


@dataclass(frozen=True)
class Neighbours:
    """The merge of PruMerge, which adds `count` patches to each kept patch.

    With `normalised`, every token is a mean weighted by attention.
    """

    count: int
    normalised: bool

    def weights(
        self, attention: Float[Tensor, " patch"], keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"]
    ) -> Float[Tensor, "token patch"]:
        """Return the weights of one image: a token per kept patch, and a token of all others if there are any."""
        patches = len(attention)
        rest = complement(kept, patches)
        rest = rest[len(kept) + len(rest) - patches :]  # for each patch that is kept twice, one of these is lost
        near = self._near(keys, kept, torch.cat([kept, rest]))
        own, left = one_hot(kept, patches), one_hot(rest, patches).sum(0, keepdim=True)[: len(rest)]
        if not self.normalised:
            return torch.cat([own + near * attention, left * attention])
        weights = torch.cat([own + near, left]) * attention
        return weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

    def _near(
        self, keys: Float[Tensor, "patch hidden"], kept: Int[Tensor, " kept"], pool: Int[Tensor, " patch"]
    ) -> Float[Tensor, "kept patch"]:
        """Count how often each patch is among the neighbours that a kept patch has in the pool.

        The first patches of the pool are the kept ones; no kept patch is its own neighbour.
        """
        unit = F.normalize(keys.float(), dim=-1)
        cosine = (unit[kept] @ unit.T)[:, pool].fill_diagonal_(-torch.inf)
        nearest = cosine.topk(min(self.count, len(pool) - 1)).indices
        chosen = torch.zeros_like(cosine).scatter_(1, nearest, 1)
        return torch.zeros_like(cosine).index_add_(1, pool, chosen)
