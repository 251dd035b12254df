"""TRIM: patches by what CLIP says of them and the question, and one token for all the others.

Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs", COLING 2025, arXiv
2409.10994; FreedomIntelligence/TRIM, llava/model/multimodal_encoder/clip_encoder.py at 0e66677, reimplemented from its maths.

Reads `clip_patches`, the question's pooled CLIP text and `raw`. Published: as many patches as are outliers of the softmax of the
negated products (neither side normalised), then the mean of the others ("TextSim+"); its results are those of a language model
tuned on such tokens. Patches in raster order, the mean behind; it stands nowhere, so positions are compact. `keep` says how many
tokens there are in all: keep - 1 patches and the mean; the mean alone at 1, all patches and nothing to average at the most.

Quirks: the official code finds outliers over the batch, so that an image depends on it; here they are each image's own. It cuts
a question to what CLIP reads at once; here the first segment of a long one is read, which ends without CLIP's end token.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.nearest import complement, one_hot
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruners._outliers import outliers, ragged
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Beside, Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class Trim(Pruner):
    """Top-k of the negated product of patch and text in CLIP's space; the mean of the rest is one token, in raw space."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "clip_patches"})
    reads: ClassVar[frozenset[Beside]] = frozenset({"clip_text"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    count: Literal["budget", "outliers"] = "budget"
    """How many patches: one fewer than the budget, or those whose score is an outlier, as published."""

    @property
    def adaptive(self) -> bool:
        """Where outliers decide."""
        return self.count == "outliers"

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Weights over the patches."""
        assert tokens.clip_text is not None
        pairs = zip(tokens.arrays["clip_patches"].float(), tokens.clip_text.pooled[:, 0], strict=True)
        weights = [self._weights(-(patches @ text), keep - 1) for patches, text in pairs]
        return ragged(weights) if self.adaptive else Pruned(merge=Merge(torch.stack(weights), "raw"))

    def _weights(self, scores: Float[Tensor, " patch"], count: int) -> Float[Tensor, "kept patch"]:
        patches = len(scores)
        if self.adaptive:
            count = outliers(scores.softmax(dim=0))
        if count == patches - 1:  # what is left is its own mean
            return torch.eye(patches, device=scores.device)
        kept = ranking(scores)[:count].sort().values
        rest = one_hot(complement(kept, patches), patches).mean(dim=0, keepdim=True)
        return torch.cat([one_hot(kept, patches), rest])
