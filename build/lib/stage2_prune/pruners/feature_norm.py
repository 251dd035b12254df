"""Patches with the longest feature vectors: the simplest score that looks at the image."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FeatureNorm(Pruner):
    """Top-k of the L2 norm of `raw`, taken in float32 whatever the features' dtype."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The `keep` longest features of each image, ascending; of equals the lower index."""
        return top_k(tokens.arrays["raw"].float().norm(dim=-1), keep)
