"""VisionZip: the patches that CLS attends to most, and the rest merged into a few contextual tokens.

Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467;
dvlab-research/VisionZip at 3151f6d. Reimplemented from its maths.

Reads the CLS row's attention and the keys of the layer that makes `raw`. Published: 54 dominant tokens (the CLS row is one of
them) + 10 contextual ones of 64, 108 + 20 of 128, 162 + 30 of 192: the same share at every budget here. Tokens come in the
order CLS, dominant patches in raster order, contextual ones. Compact positions, as the CLS row stands nowhere in the image.

Quirk: a contextual token is a target plus the mean of the patches assigned to it, which about doubles its norm; `paper` averages
all of them, target included, as the paper's text has it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.nearest import assigned, complement, one_hot
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class VisionZip(Pruner):
    """The CLS row, dominant patches as they are, and contextual tokens merged by the likeness of keys, in raw space."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_hidden", "cls_attention", "keys"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    contextual: Annotated[float, Field(ge=0, le=1)] = 10 / 64
    """Share of the kept tokens that are contextual."""
    quirks: Literal["official", "paper"] = "official"
    """What a contextual token is: see above."""

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Weights over the patches and the CLS row after them."""
        targets = min(round(keep * self.contextual), keep - 1)
        weights: list[Tensor] = []
        for attention, keys in zip(tokens.arrays["cls_attention"], tokens.arrays["keys"], strict=True):
            dominant = top_k(attention.sum(0, keepdim=True), keep - targets - 1)[0]
            cls = torch.tensor([tokens.patches], device=dominant.device)
            kept = one_hot(torch.cat([cls, dominant]), tokens.patches + 1)
            merged = self._contextual(keys[1:], complement(dominant, tokens.patches), targets)
            weights.append(torch.cat([kept, F.pad(merged, (0, 1))]))
        return Pruned(merge=Merge(torch.stack(weights), "raw"))

    def _contextual(
        self, keys: Float[Tensor, "patch width"], rest: Int[Tensor, " rest"], count: int
    ) -> Float[Tensor, "{count} patch"]:
        if not count:
            return torch.zeros(0, len(keys), device=keys.device)
        chosen = torch.arange(count, device=rest.device) * (len(rest) // count)
        targets = rest[chosen]
        others = assigned(keys, targets, rest[complement(chosen, len(rest))])
        sizes = others.sum(1, keepdim=True)
        if self.quirks == "paper":
            return (one_hot(targets, len(keys)) + others) / (1 + sizes)
        return one_hot(targets, len(keys)) + others / sizes.clamp_min(1)
