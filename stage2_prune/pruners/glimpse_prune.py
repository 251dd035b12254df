"""Patches that a learnt token, which has read the question, finds important at a glance: as many as the question needs.

GlimpsePrune (HVision-NKU/GlimpsePrune at 091a3d5, Apache-2.0; arXiv 2508.01548), reimplemented from the description.

Learnt: a glimpse token, and a predictor of each patch's importance from the token's attention and the patch's features.
Published: the attention of layer 21 and the tower's layers 5, 11, 17 and 23; loss Dice 1.0 + BCE 0.1 on the boxes of the answers,
and the language model's loss 1.0; 20,000 questions of GQA, 1e-4, one epoch (`train.learning_rate: 1e-4`); tokens are dropped at
layer 21, and how many is up to the image.

What differs here: it stands before the language model, where the budget is spent from the first layer on. So the token reads the
question's embeddings and looks at raw features in one attention of its own, of width 256. Boxes are the patches that
data.questions marks for each question; a question without any teaches by the language model's loss alone, which a soft top-k at
the step's budget carries. `count: threshold` keeps a number of its own for each question; thresholds are calibrated on the
validation split to the budget in the mean, where the published one is fixed.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.words import Glimpse
from stage2_prune.primitives.dice import dice_loss
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruning.practice import Practice, Shown, Signal
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ThresholdPruner
from stage2_prune.pruning.tokens import Beside, VisualTokens


@dataclass(frozen=True)
class GlimpsePrune(ThresholdPruner):
    """Keeps the patches of the highest predicted importance for the question, or all that are important enough."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})
    learns_from: ClassVar[frozenset[Signal]] = frozenset({"regions"})
    losses: ClassVar[tuple[str, ...]] = ("dice", "bce")

    width: PositiveInt = 256
    """Width of the token and of the predictor."""
    heads: PositiveInt = 8
    """Heads of the token's attention."""
    dice_weight: NonNegativeFloat = 1.0
    """Weight of the Dice loss between importance and the questions' patches."""
    bce_weight: NonNegativeFloat = 0.1
    """Weight of the binary cross-entropy between the same two."""

    def network(self, spec: ModuleSpec) -> nn.Module:
        """Build the token and the predictor."""
        return Glimpse(spec, self.width, self.heads)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute the logit of each patch's importance for the image's question."""
        assert tokens.question is not None, "a method is given what it `reads`"
        return image_by_image(self.module, tokens.arrays["raw"], tokens.question)

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Show soft weights, and compare importance with the patches that the questions are about."""
        assert practice.regions is not None, "a method is given what it `learns_from`"
        logits, wanted = self.policy(tokens), practice.regions.float()
        marked = practice.regions.any(1).float()
        dice = self.dice_weight * marked * dice_loss(logits.sigmoid(), wanted)
        apart = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        weights = soft_top_k(logits, practice.keep, self.temperature(practice.progress))
        return Shown(weights, losses={"dice": dice, "bce": self.bce_weight * marked * apart})
