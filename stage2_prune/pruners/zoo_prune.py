"""Patches at which the projector is most sensitive, far from each other.

ZOO-Prune (Kim et al., "Training-Free Token Pruning via Zeroth-Order Gradient Estimation in Vision-Language Models", CVPR 2026,
arXiv 2509.24837); official code AIM-SKKU/ZOO-Prune, LLaVA/llava/model/llava_arch.py at 159f7f9, reimplemented from the formula.
The method reads `raw`, the projector and `projected`. Published: 64 directions, each for all patches of an image, step 0.01,
cosine distance of `projected`, raster order, compact positions. It costs 2 x 64 projections of an image.

Quirks: the official directions have no seed; here they are drawn for each image. The official code moves features in 16 bits,
where a step of 0.01 along a unit vector is mostly rounded away. Here the formula is as published in float32; in 16 bits it is
the limit for small steps, the derivative along the direction (forward mode), which no rounding swallows.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.draw import image_seed
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruners._farthest import farthest_first
from stage2_prune.pruners._slope import slopes
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Beside, Project, VisualTokens


@dataclass(frozen=True)
class ZooPrune(Pruner):
    """Greedy max-min diversity, in which distances are weighed by how sensitive the projector is at a patch.

    Sensitivity is the mean, over random unit directions, of how far the projected patch moves per step; it is scaled to [0, 1]
    over an image. The most sensitive patch is first.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "projected"})
    nested: ClassVar[bool] = True
    reads: ClassVar[frozenset[Beside]] = frozenset({"projector"})
    positions: ClassVar[Positions] = "compact"
    randomised: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the directions; an evaluation averages over this seed and those that follow it."""
    directions: PositiveInt = 64
    """Directions along which the features of an image are moved."""
    step: PositiveFloat = 0.01
    """Length of a step to either side, in units of `raw`; it has no effect in 16 bits, see above."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image in the order in which they are found; of equal patches the lower index."""
        assert tokens.projector is not None
        images = zip(tokens.arrays["raw"], tokens.image_ids, strict=True)
        sensitivity = torch.stack([self._sensitivity(raw, tokens.projector, name) for raw, name in images])
        least, most = sensitivity.amin(1, keepdim=True), sensitivity.amax(1, keepdim=True)
        weight = torch.where(most > least, (sensitivity - least) / (most - least + 1e-8), 1.0)
        distance = 1 - cosine_similarity(tokens.arrays["projected"])
        return farthest_first(distance.mul_(weight[:, None]), weight, keep)

    def _sensitivity(
        self, raw: Float[Tensor, "patch hidden"], project: Project, image_id: str
    ) -> Float[Tensor, " patch"]:
        generator = torch.Generator().manual_seed(image_seed(self.seed, image_id) % 2**63)
        drawn = F.normalize(torch.randn(self.directions, raw.shape[-1], generator=generator), dim=-1)
        return slopes(project, raw, drawn.to(raw), self.step).mean(dim=0)
