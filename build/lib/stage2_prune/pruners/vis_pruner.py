"""Patches that the CLS token attends to, and of the rest those that repeat no other.

VisPruner (Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv 2412.01818v2); official code Theia-4869/VisPruner, llava_arch.py at aefa01a, reimplemented from the
formula. Published: CLS attention averaged over heads, cosine of `raw`, important_ratio 0.5, 8 patches a round, raster
order, compact positions.

Quirks: the official code counts what stays of a round's first half as if the number of patches were even and the half
large enough, and raises where torch cannot broadcast the two counts: at 291 of the budgets 1..576 with the published
ratio. `fixed`, the default, goes on (of an odd number the first half has one more) and equals the official selection
wherever there is one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class VisPruner(Pruner):
    """The most attended patches, and of the others those left after dropping duplicates round by round.

    A round pairs every other patch with the ones between, and drops those with the nearest neighbour there. One
    swap of near-equal scores changes all later pairs, so everything is computed in float64: the official code keeps the
    same patches in float64, and often others in float32 (in 20 of 45 settings of 24 x 24 patches 1024 wide).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention"})
    positions: ClassVar[Positions] = "compact"

    important_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the budget that goes to the most attended patches, rounded down."""
    per_round: PositiveInt = 8
    """Patches dropped in a round, at most."""
    quirks: Literal["official", "fixed"] = "fixed"
    """`official`: raises PrunerMisused where the official code raises."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """`keep` patches of each image, ascending; of equals the lower index."""
        order = ranking(tokens.arrays["cls_attention"].double().mean(dim=1))
        important = int(keep * self.important_ratio)
        images = zip(cosine_similarity(tokens.arrays["raw"].double()), order[:, important:], strict=True)
        distinct = torch.stack([self._distinct(*image, keep - important) for image in images])
        return torch.cat([order[:, :important], distinct], dim=-1).sort(dim=-1).values

    def _distinct(
        self, similarity: Float[Tensor, "patch patch"], rest: Int[Tensor, " rest"], keep: int
    ) -> Int[Tensor, "{keep}"]:
        if keep == 0:
            return rest[:0]
        while (surplus := len(rest) - keep) > 0:
            first, second = rest[0::2], rest[1::2]
            drop = min(self.per_round, surplus)
            stay, said = max(len(first) - drop, 0), len(rest) // 2 - drop
            if said == 0 and len(second) >= keep:
                stay = 0  # torch broadcasts the one that is left to the none that is said
            elif self.quirks == "official" and said not in (stay, 1, -1):
                raise PrunerMisused(
                    f"the official VisPruner cannot drop {drop} of {len(rest)} patches in a round: choose another "
                    "budget or set quirks to fixed"
                )
            most_repeated_first = ranking(similarity[first][:, second].amax(dim=1))
            rest = torch.cat([first[most_repeated_first[len(first) - stay :]], second])
        return rest
