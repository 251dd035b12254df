"""Patches that a random walk over similar patches ends at most often.

G-Prune (Jiang et al., "What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal Large Language
Models from the Perspective of Graph", AAAI 2025, arXiv 2501.02268); official code jytmelon/G-Prune,
LLaVA-NeXT/llava/model/llava_arch.py at 5e226fb, reimplemented from the formula. Published: `projected`, threshold 0.5,
temperature 0.03, 5 steps, raster order, compact positions. The official code always keeps half of the patches: here a budget
states the number.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens

NO_EDGE = -5000.0
"""The logit of two patches without an edge: it is finite, so that a patch without any edge walks anywhere."""


@dataclass(frozen=True)
class GPrune(Pruner):
    """Keeps the patches to which most importance flows over edges between similar patches, divided by their edges.

    Importance starts as the norm of the feature. Patches are linked where their cosine reaches `threshold`, and a step goes
    along an edge with the softmax of cosine / `temperature`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})
    nested: ClassVar[bool] = True
    positions: ClassVar[Positions] = "compact"

    threshold: PositiveFloat = 0.5
    """Cosine from which two patches are linked."""
    temperature: PositiveFloat = 0.03
    """Softness of a step, in units of the cosine."""
    steps: PositiveInt = 5
    """Steps of the walk."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` highest scores of each image, highest first; of equal scores the lower index."""
        images = zip(tokens.arrays["projected"].float(), cosine_similarity(tokens.arrays["projected"]), strict=True)
        return ranking(torch.stack([self._scores(*image) for image in images]))[:, :keep]

    def _scores(
        self, features: Float[Tensor, "patch embed"], similarity: Float[Tensor, "patch patch"]
    ) -> Float[Tensor, " patch"]:
        logits = torch.where(similarity < self.threshold, NO_EDGE, similarity.double() / self.temperature)
        step = logits.softmax(dim=1)
        importance = features.double().norm(dim=-1)
        for _ in range(self.steps):  # a vector times a matrix, instead of the matrix to a power
            importance = importance @ step
        return importance / (step > 0).sum(dim=1)
