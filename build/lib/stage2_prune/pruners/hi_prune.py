"""HiPrune: anchors of a middle layer with their neighbours, and the patches that a deep layer attends to.

Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
arXiv 2508.00553; Danielement321/HiPrune at 6e83a12. Reimplemented from its maths.

Reads the attention that patches receive, averaged over heads and over all rows that attend, in two layers. Published: the
object layer 8 of 24 (from 0), the layer that makes `raw` (-2 of LLaVA), alpha 0.1. Raster order, compact positions.

Quirk: the neighbours of an anchor are the indices one and one row away, clamped to the image: beside the right edge that is the
next row's first patch, and under the bottom row the last patch. `fixed` takes only neighbours that there are.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from configs.experiment import Positions
from configs.published_layers import tower_layer
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens

PLUS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
"""An anchor and its neighbours, in rows and columns."""


@dataclass(frozen=True)
class HiPrune(Pruner):
    """Plus-shaped groups around the best patches of the object layer, filled up with the best of the deep layer."""

    needs: ClassVar[frozenset[str]] = frozenset({"received_attention"})
    positions: ClassVar[Positions] = "compact"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the kept tokens that anchors and their neighbours may take."""
    object_layer: int = 8
    """Tower layer of the anchors, from 0 in a tower of 24."""
    deep_layer: int = -2
    """Tower layer of all others; negative from the end, as `vision_feature_layer`."""
    quirks: Literal["official", "fixed"] = "official"
    """What lies beside the edge of the image: see above."""

    def tower_layers(self, layers: int) -> dict[str, int]:
        """The layers of both choices."""
        return {name: tower_layer(getattr(self, name), layers) for name in ("object_layer", "deep_layer")}

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Groups and fill-up, ascending."""
        received = tokens.arrays["received_attention"]
        layers = self.tower_layers(received.shape[1])
        groups = min(round(keep * self.alpha / len(PLUS)), keep // len(PLUS))
        anchors = top_k(received[:, layers["object_layer"]], groups)
        deep = received[:, layers["deep_layer"]]
        chosen = torch.zeros_like(deep, dtype=torch.bool).scatter_(1, self._group(anchors, tokens.grid), True)
        return top_k(deep.masked_fill(chosen, torch.inf), keep)

    def _group(self, anchors: Int[Tensor, "image anchor"], grid: tuple[int, int]) -> Int[Tensor, "image member"]:
        rows, columns = grid
        down, across = torch.tensor(PLUS, device=anchors.device).T
        members = anchors[..., None] + down * columns + across
        if self.quirks == "official":
            return members.clamp(0, rows * columns - 1).flatten(1)
        row, column = anchors[..., None] // columns + down, anchors[..., None] % columns + across
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return torch.where(inside, members, anchors[..., None]).flatten(1)
