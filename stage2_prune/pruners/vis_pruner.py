"""Patches that the CLS token attends to, and of the rest those that repeat no other.

VisPruner (Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025,
arXiv 2412.01818v2); official code Theia-4869/VisPruner, llava_arch.py at aefa01a, reimplemented from the formula. Published:
CLS attention averaged over heads, cosine of `raw`, important_ratio 0.5, 8 patches a round, raster order, compact positions.

Quirks: the official code counts what stays of a round's first half as if the number of patches were even and the half large
enough, and raises where torch cannot broadcast the two counts: at 291 of the budgets 1..576 with the published ratio. `fixed`,
the default, goes on (of an odd number the first half has one more) and equals the official selection wherever there is one.
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
    """Keeps the most attended patches, and of the others those left after dropping duplicates round by round.

    A round pairs every other patch with the ones between, and drops those with the nearest neighbour there. One swap of
    near-equal scores changes all later pairs, so everything is computed in float64: the official code keeps the same patches in
    float64, and often others in float32 (in 20 of 45 settings of 24 x 24 patches 1024 wide).
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
        """Return `keep` patches of each image, ascending; of equal patches the lower index."""
        ranked = ranking(tokens.arrays["cls_attention"].double().mean(dim=1))
        important = int(keep * self.important_ratio)
        distinct = self._distinct(
            cosine_similarity(tokens.arrays["raw"].double()), ranked[:, important:], keep - important
        )
        return torch.cat([ranked[:, :important], distinct], dim=-1).sort(dim=-1).values

    def _distinct(
        self, similarity: Float[Tensor, "image patch patch"], rest: Int[Tensor, "image rest"], keep: int
    ) -> Int[Tensor, "image {keep}"]:
        if keep == 0:
            return rest[:, :0]
        image = torch.arange(len(rest), device=rest.device)[:, None, None]
        repeats = similarity.new_full(
            rest.shape, -torch.inf
        )  # with -inf the second half of a round comes last, as it is
        while (surplus := rest.shape[1] - keep) > 0:
            first, second, left = rest[:, 0::2], rest[:, 1::2], repeats[:, : rest.shape[1]]
            pairs = similarity[image, first[:, :, None], second[:, None]]
            torch.amax(pairs, dim=2, out=left[:, 0::2])
            most_repeated_first = left.sort(dim=1, descending=True, stable=True).indices
            dropped = first.shape[1] - self._staying(first.shape[1], second.shape[1], keep, surplus)
            rest = rest.gather(1, most_repeated_first[:, dropped:])
        return rest

    def _staying(self, first: int, second: int, keep: int, surplus: int) -> int:
        """Return how many patches of a round's first half stay."""
        drop = min(self.per_round, surplus)
        stay, counted = max(first - drop, 0), (first + second) // 2 - drop
        if counted == 0 and second >= keep:
            return 0  # torch broadcasts the single patch that is left to the count of 0
        if self.quirks == "official" and counted not in (stay, 1, -1):
            raise PrunerMisused(
                f"the official VisPruner cannot drop {drop} of {first + second} patches in a round: choose another "
                "budget or set quirks to fixed"
            )
        return stay
