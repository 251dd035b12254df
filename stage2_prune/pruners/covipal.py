"""Patches that a classifier of image and question keeps: first taught by the attention of deep layers, then end to end.

CoViPAL (arXiv 2508.17243), from the description; its code and its widths were not verified.

Learnt: a classifier that reads patches and text together and gives each patch a logit. Published: in a first stage it is taught
which patches the heads of deep layers attend to, in a second stage it is trained end to end through the language model. It reads
the question, so that an image is pruned once per question.

What differs here: the classifier is two transformer blocks of width 256 over raw features and the question's embeddings, without
any of the language model's hidden states; the first stage's targets are the top-k of the attention that the prompt's last token
pays at the layers of the training's signals, with k the step's budget; the stages share one training, of which `taught` says the
first part. In the first stage the language model is shown every patch, and its loss has no gradient.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.words import JointBlocks
from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruning.practice import Practice, Shown, Signal
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ScoredPruner
from stage2_prune.pruning.tokens import Beside, VisualTokens


@dataclass(frozen=True)
class Covipal(ScoredPruner):
    """Keeps the patches that a classifier of patches and question scores highest."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})
    learns_from: ClassVar[frozenset[Signal]] = frozenset({"attention"})
    losses: ClassVar[tuple[str, ...]] = ("attention",)

    width: PositiveInt = 256
    """Width of the classifier."""
    heads: PositiveInt = 8
    """Attention heads of a block."""
    layers: PositiveInt = 2
    """Number of blocks."""
    taught: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a training in which attention teaches; the rest is end to end."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the classifier."""
        return JointBlocks(spec, self.width, self.heads, self.layers)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute the logits of each image for its question."""
        assert tokens.question is not None, "a method is given what it `reads`"
        return image_by_image(self.module, tokens.arrays["raw"], tokens.question)

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Compare the logits with attention in the first stage; show soft weights in the second."""
        logits = self.policy(tokens)
        if practice.progress >= self.taught:
            span = (practice.progress - self.taught) / (1 - self.taught)
            weights = soft_top_k(logits, practice.keep, self.temperature(span))
            return Shown(weights, losses={"attention": 0 * logits.sum(1)})
        assert practice.attention is not None, "a method is given what it `learns_from`"
        attended = ranking_of(practice.attention.float(), tokens.image_ids, self.tie_seed)[:, : practice.keep]
        target = torch.zeros_like(logits).scatter(1, attended, 1)
        apart = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        return Shown(losses={"attention": apart})
