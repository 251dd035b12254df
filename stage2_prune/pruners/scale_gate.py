"""Patches that transformer blocks score highest, trained with each patch scaled by its weight: the ablation of DiffPrune.

DiffPrune / AutoSelect, arXiv 2603.07135 and 2605.28051, "scale gate" in the table of ablations (93.2, 94.8 and 96.5 % of the
unpruned accuracy at 64, 128 and 192 tokens, against 95.5, 97.3 and 98.3 % with noise); no code was read.

Learnt: two transformer blocks of width 1024, which is that of the raw features, with 16 heads, and a linear score. Published,
with the language model frozen: AdamW at 2e-4 with a cosine, batches of 32, 2,000 steps, temperature 2.0 to 0.1, the language
model's loss alone (`train.learning_rate: 2e-4`, `train.batch_size: 32`). A small gate may hide little of a patch, because the
language model norms what it reads.

What differs here: budgets are drawn at random in each step, so that one network serves all; raw features are normed first; and it
is trained on questions, not on captions.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import PatchBlocks, image_by_image
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ScoredPruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class ScaleGate(ScoredPruner):
    """Keeps the highest scores of transformer blocks on raw features; in training a soft top-k multiplies the projected rows."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})

    width: PositiveInt | None = None
    """Width of the blocks; None takes the width of the raw features, as published."""
    heads: PositiveInt = 16
    """Attention heads of a block; where they do not divide the width, the largest number that divides both."""
    layers: PositiveInt = 2
    """Number of blocks."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the blocks and the score."""
        return PatchBlocks(spec.shapes["raw"][-1], self.width, self.heads, self.layers)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Score the patches of each image."""
        return image_by_image(self.module, tokens.arrays["raw"])

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Show every patch, scaled by its weight."""
        weights = soft_top_k(self.policy(tokens), practice.keep, self.temperature(practice.progress))
        return Shown(visual=practice.projected * weights[..., None])
