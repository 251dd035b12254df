"""VisionTrim: patches that the CLS row and the other patches attend to, and what the question asks for beside them.

"VisionTrim: Unified Vision Token Compression for Training-Free MLLM Acceleration", 2026; hanxunyu/VisionTrim, its
llava/model/multimodal_encoder/clip_encoder.py at 360ce81, reimplemented from its maths.

The method reads the CLS row's attention, the received attention and the attention to oneself, all of the layer that makes
`raw`: what a patch receives from the other patches is (all rows' sum) - (the CLS row's part) - (its own). Both terms are scaled
to unit length and averaged (DVTS). The text-guided complement (TGVC) reads `raw`, `clip_projected` and CLIP's tokens of the
question. Published: 48 + 16 of 64 tokens, the same share at every budget here; 3 rounds. Dominant patches come in raster order,
then the complement, also by raster; positions are compact, as tokens of the complement are sums of many patches.

As released, the paper's local-affinity term (LTAM) and its weighting by variance are computed and then overwritten, and the
stage inside the language model is commented out: none of them is here. A token of the complement is a sum, of its target and of
a mean per round; the cosines' scale changes no choice, so it is left out.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from configs.published_layers import tower_layer
from stage2_prune.primitives.nearest import one_hot
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruners._text_guided import text_guided
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Beside, Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class VisionTrim(Pruner):
    """Keeps the patches with most attention from the CLS row and from the other patches; merges the rest, guided by the text."""

    needs: ClassVar[frozenset[str]] = frozenset(
        {"raw", "cls_attention", "received_attention", "self_attention_diagonal", "clip_projected"}
    )
    reads: ClassVar[frozenset[Beside]] = frozenset({"clip_text"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    cls_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the CLS row's attention; the patches' attention has the rest."""
    layer: int = -2
    """Tower layer that makes `raw`; a negative number counts from the end, as in `vision_feature_layer`."""
    complement: Annotated[float, Field(ge=0, le=1)] = 16 / 64
    """Share of the kept tokens that are complement; at 0 only the selection is left, whatever the text."""
    rounds: PositiveInt = 3
    """How often the rest is merged into the complement."""

    def tower_layers(self, layers: int) -> dict[str, int]:
        """Return the layer of the received attention."""
        return {"layer": tower_layer(self.layer, layers)}

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return weights over the patches."""
        assert tokens.clip_text is not None
        by_layer = tokens.arrays["received_attention"]
        received = by_layer[:, self.tower_layers(by_layer.shape[1])["layer"]]
        own, heads = tokens.arrays["self_attention_diagonal"], tokens.arrays["cls_attention"]
        scores = self._score(heads.mean(dim=1), received, own)
        targets = min(round(keep * self.complement), keep - 1)
        asked = zip(tokens.arrays["clip_projected"].float(), tokens.clip_text.tokens, strict=True)
        weights = [
            torch.cat([one_hot(dominant, tokens.patches), text_guided(*pair, dominant, targets, self.rounds)])
            for dominant, pair in zip(top_k(scores, keep - targets), asked, strict=True)
        ]
        return Pruned(merge=Merge(torch.stack(weights), "raw"))

    def _score(
        self,
        cls: Float[Tensor, "image patch"],
        received: Float[Tensor, "image patch"],
        own: Float[Tensor, "image patch"],
    ) -> Float[Tensor, "image patch"]:
        rows = cls.shape[1] + 1  # the rows that attend: the patches and the CLS row
        from_patches = rows * received - cls - own
        return self.cls_weight * F.normalize(cls, dim=-1) + (1 - self.cls_weight) * F.normalize(from_patches, dim=-1)
