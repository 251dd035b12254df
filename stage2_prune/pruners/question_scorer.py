"""Patches that a small network scores highest for the question that is asked.

This project's own, from the recipe that trained pruners have in common: patches look at each other and then, by
cross-attention, at the question's embeddings in the language model, which are projected to a small width; a soft top-k is trained
through the frozen language model, its temperature falling from 2.0 to 0.1.

The method reads the question, so that an image is pruned once per question. Learnt: a stock decoder block of width 256 (8 heads),
two projections to that width, and a linear score. Patches carry 2-D sine positions.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.words import CrossBlocks
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ScoredPruner
from stage2_prune.pruning.tokens import Beside, VisualTokens


@dataclass(frozen=True)
class QuestionScorer(ScoredPruner):
    """Keeps the highest scores of patches that have looked at the question's words."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})

    width: PositiveInt = 256
    """Width of the blocks."""
    heads: PositiveInt = 8
    """Attention heads of a block."""
    layers: PositiveInt = 1
    """Number of blocks."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the network."""
        return CrossBlocks(spec, self.width, self.heads, self.layers)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Score the patches of each image for its question."""
        assert tokens.question is not None, "a method is given what it `reads`"
        return image_by_image(self.module, tokens.arrays["raw"], tokens.question)
