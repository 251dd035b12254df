"""Patches that differ most from the rest of their image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from pydantic import NonNegativeFloat
from torch import Tensor

from stage2_prune import Pruner, VisualTokens, top_k


@dataclass(frozen=True)
class MyPruner(Pruner):
    """Keeps the patches whose raw feature lies farthest from the image's mean feature."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})

    attraction: NonNegativeFloat = 0.0
    """How much a patch is preferred for a long feature, whatever its direction; 0 counts the distance alone."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` highest scores of each image, ascending; of equal scores the lower index."""
        scores = []
        for raw in tokens.arrays["raw"].float():  # image by image, so that no sum depends on the batch
            distance = (raw - raw.mean(0)).norm(dim=-1)
            scores.append(distance + self.attraction * raw.norm(dim=-1))
        return top_k(torch.stack(scores), keep)
