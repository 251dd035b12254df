"""VisionTrim's selection (DVTS) as released: patches that the CLS row and the other patches attend to.

"VisionTrim: Unified Vision Token Compression for Training-Free MLLM Acceleration", 2026; hanxunyu/VisionTrim at 360ce81.
Reimplemented from its maths.

Reads the CLS row's attention, the received attention and the attention to oneself, all of the layer that makes `raw`: what a
patch receives from the other patches is (all rows' sum) - (the CLS row's part) - (its own). Both terms are scaled to unit length
and averaged. Raster order, compact positions.

As released, the paper's local-affinity term (LTAM) and its weighting by variance are computed and then overwritten, so they
are not here. Left out too: the text-guided complement (TGVC, 16 of 64 published tokens), which reads CLIP's text tokens and its
visual projection; the whole budget goes to the selection.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.pruner import Pruner
from stage2_prune.tokens import VisualTokens
from stage2_prune.top_k import top_k
from stage2_prune.tower_layers import tower_layer


@dataclass(frozen=True)
class VisionTrim(Pruner):
    """Top-k of the attention from the CLS row and from the other patches, weighted against each other."""

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "received_attention", "self_attention_diagonal"})
    positions: ClassVar[Positions] = "compact"

    cls_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the CLS row's attention; the rest is that of the patches'."""
    layer: int = -2
    """Tower layer that makes `raw`; negative from the end, as `vision_feature_layer`."""

    def tower_layers(self, layers: int) -> dict[str, int]:
        """The layer of the received attention."""
        return {"layer": tower_layer(self.layer, layers)}

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The `keep` highest scores of each image, ascending; of equals the lower index."""
        every = tokens.arrays["received_attention"]
        received = every[:, self.tower_layers(every.shape[1])["layer"]]
        arrays = zip(tokens.arrays["cls_attention"], received, tokens.arrays["self_attention_diagonal"], strict=True)
        return top_k(torch.stack([self._score(heads.mean(0), *others) for heads, *others in arrays]), keep)

    def _score(
        self, cls: Float[Tensor, " patch"], received: Float[Tensor, " patch"], own: Float[Tensor, " patch"]
    ) -> Float[Tensor, " patch"]:
        rows = len(cls) + 1  # that attend: the patches and the CLS row
        from_patches = rows * received - cls - own
        return self.cls_weight * F.normalize(cls, dim=0) + (1 - self.cls_weight) * F.normalize(from_patches, dim=0)
