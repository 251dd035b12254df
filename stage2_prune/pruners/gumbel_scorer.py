"""Patches that a classifier keeps, trained by hard random decisions whose gradient is that of soft ones.

Dynamic-LLaVA (Huang et al., ICLR 2025, arXiv 2412.00876; Osilly/dynamic_llava), its predictor of image tokens, reimplemented from
the description; the split into local and global halves is that of DynamicViT.

Learnt: LayerNorm, a layer of 512 with GELU, two transformer blocks (8 heads, inner width 2048), half of the channels replaced by
their mean over patches, and an MLP with two logits, keep and drop. Published: Gumbel-softmax, hard with a straight-through
gradient, temperature 1.0 to 0.1; the language model's loss plus 100 x (share to keep - share kept)^2; predictor at 2e-4 with a
cosine, warm-up 0.03, batches of 64, one epoch of LLaVA-665K; a share of 0.2. Evaluation keeps the top-k.

What differs here: the predictor stands before the language model and reads raw features, where the paper's reads hidden states
behind layer 2; the language model is frozen, where the paper tunes it too; and no output text is dropped. Dropped patches keep a
weight of 1e-4 while training, because the logarithm of a weight has no gradient at 0. The decisions know no budget: train at one
(`train.min_keep` equal to `train.max_keep`), or the loss of the share pulls in all directions.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.keep_or_drop import KeepOrDrop
from stage2_prune.primitives.straight_through import straight_through
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ScoredPruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class GumbelScorer(ScoredPruner):
    """Keeps the patches with the highest odds of being kept; in training each patch is kept or dropped at random by its odds."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    losses: ClassVar[tuple[str, ...]] = ("ratio",)

    first_temperature: PositiveFloat = 1.0
    """Softness of the decisions' gradient when a training begins."""
    width: PositiveInt = 512
    """Width of the predictor."""
    heads: PositiveInt = 8
    """Attention heads of a block."""
    layers: PositiveInt = 2
    """Number of blocks."""
    ratio_weight: NonNegativeFloat = 100.0
    """Weight of the squared difference between the share of patches to keep and the share kept."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the predictor."""
        return KeepOrDrop(spec.shapes["raw"][-1], self.width, self.heads, self.layers)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute the log-odds of keeping each patch."""
        return image_by_image(self.module, tokens.arrays["raw"])

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Draw a hard decision for each patch; at a budget of all patches every patch is kept."""
        odds = self.policy(tokens)
        drawn = torch.rand_like(odds).clamp(torch.finfo(odds.dtype).tiny, 1 - torch.finfo(odds.dtype).eps)
        noise = drawn.logit()  # distributed as the difference of two Gumbel draws, of which keep and drop get one each
        soft = ((odds + noise) / self.temperature(practice.progress)).sigmoid()
        hard = (soft > 0.5) | (practice.keep == tokens.patches)
        kept = straight_through(hard, soft, floor=0.0).mean(1)
        ratio = self.ratio_weight * (practice.keep / tokens.patches - kept).square()
        return Shown(straight_through(hard, soft), losses={"ratio": ratio})
