"""Patches that a trained linear layer scores highest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage2_prune import ModuleSpec, TrainedPruner, VisualTokens, soft_top_k, top_k


@dataclass(frozen=True)
class MyScorer(TrainedPruner):
    """Keeps the patches whose raw feature a linear layer scores highest."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the layer, from a raw feature to its score."""
        return nn.Linear(spec.shapes["raw"][-1], 1)

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` highest scores of each image, ascending."""
        return top_k(self.scores(tokens), keep)

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return weights in [0, 1] that sum to `keep`, through which the layer is trained."""
        return soft_top_k(self.scores(tokens), keep, temperature=0.1)

    def scores(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute scores in float32, image by image, so that none depends on the batch."""
        return torch.stack([self.module(raw.float())[:, 0] for raw in tokens.arrays["raw"]])
