"""Patches that all rows of the vision tower attend to most: `cls_attention` for towers without a CLS row."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor

from configs.published_layers import tower_layer
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class ReceivedAttention(Pruner):
    """Keeps the patches that receive most attention in one layer, averaged over heads and over the rows that attend."""

    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    nested: ClassVar[bool] = True

    layer: int = -2
    """Tower layer, from 0 in a tower of 24; a negative number counts from the end, as in `vision_feature_layer`."""

    def tower_layers(self, layers: int) -> dict[str, int]:
        """Return the layer of the score."""
        return {"layer": tower_layer(self.layer, layers)}

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` most attended patches of each image, most attended first; of equal patches the lower index."""
        received = tokens.arrays["received_attention"]
        return ranking(received[:, self.tower_layers(received.shape[1])["layer"]])[:, :keep]
