"""Patches with the longest feature vectors: the simplest score that looks at the image."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class FeatureNorm(Pruner):
    """Keeps the patches with the largest L2 norm of `raw`, computed in float32 whatever the features' dtype."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    nested: ClassVar[bool] = True

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` longest features of each image, longest first; of equal lengths the lower index."""
        return ranking(tokens.arrays["raw"].float().norm(dim=-1))[:, :keep]
