"""Patches whose query agrees most with all keys, trained by a soft top-k that is pushed towards the hard one.

VisionSelector (arXiv 2510.16598; JulietChoo/VisionSelector at 800a70f, which has no licence: from its maths alone).

Learnt: two matrices without bias, drawn with a standard deviation of 1e-4, to queries and keys of width 1792; a patch scores
the mean over all patches j of q_i . k_j / sqrt(1792). Published: sigma(x + t) with t such that the weights sum to the budget, the
gradient through t exact; the weights multiply the tokens; loss of the language model plus w x BCE(soft weights, hard top-k), w
rising from 0.1 to 3.0 in a straight line; budget 0.2, 5e-5 with a cosine, batches of 128, one epoch, everything else frozen
(`train.learning_rate: 5e-5`, `train.batch_size: 128`).

What differs here: it stands behind LLaVA's projector, where the paper's stands behind Qwen's merger; budgets are drawn at random
in each step. Fresh scores differ by less than float32 resolves of anything else, so ties matter: they are broken at random.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ScoredPruner
from stage2_prune.pruning.tokens import VisualTokens

SPREAD = 1e-4
"""Standard deviation of fresh weights."""


@dataclass(frozen=True)
class VisionSelector(ScoredPruner):
    """Keeps the highest mean match of a patch's query with all keys; in training a soft top-k multiplies the projected rows."""

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})
    losses: ClassVar[tuple[str, ...]] = ("sharpness",)

    first_temperature: PositiveFloat = 1.0
    """Softness of the top-k when a training begins; published without any."""
    last_temperature: PositiveFloat = 1.0
    """Softness of the top-k when a training ends; published without any."""
    width: PositiveInt = 1792
    """Width of queries and keys."""
    first_sharpness: NonNegativeFloat = 0.1
    """Weight of the cross-entropy between soft and hard top-k when a training begins."""
    last_sharpness: NonNegativeFloat = 3.0
    """The same weight when a training ends; it rises in a straight line."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the two matrices."""
        return MeanMatch(spec.embed, self.width)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute the mean match of each patch."""
        return image_by_image(self.module, tokens.arrays["projected"])

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Show every patch, scaled by its weight, and say how far the weights are from the hard top-k."""
        scores = self.policy(tokens)
        soft = soft_top_k(scores, practice.keep, self.temperature(practice.progress))
        kept = ranking_of(scores.detach(), tokens.image_ids, self.tie_seed)[:, : practice.keep]
        hard = torch.zeros_like(soft).scatter(1, kept, 1)
        likely = torch.where(hard > 0, soft, 1 - soft).clamp_min(torch.finfo(soft.dtype).tiny)
        apart = -likely.log().mean(1)
        weight = self.first_sharpness + (self.last_sharpness - self.first_sharpness) * practice.progress
        return Shown(visual=practice.projected * soft[..., None], losses={"sharpness": weight * apart})


class MeanMatch(nn.Module):
    """The mean match of each row's query with the keys of all rows."""

    def __init__(self, embed: int, width: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(embed, width, bias=False) for _ in range(2))
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=SPREAD)

    def forward(self, rows: Float[Tensor, "patch embed"]) -> Float[Tensor, " patch"]:
        """Compute the matches of one image; the mean of matches is the match with the mean key."""
        return self.query(rows) @ self.key(rows).mean(0) / self.query.out_features**0.5
