"""Visual tokens that the layers still change.

V2Drop (Chen et al., "Variation-aware Vision Token Dropping", 2025), xuyang-liu16/V2Drop at 89eddbb; reimplemented from
the formula. Reads hidden states, no attention: how far a token moved in the layer that ran. Published at layers 3, 17
and 22 of 32, with half, half and one token kept, original positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import PositiveInt

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule, fit, staged

PUBLISHED_RATIO = 0.5
"""Share of the tokens that each stage but the last keeps in the released code."""


@dataclass(frozen=True)
class V2Drop(InLLMPruner):
    """Top-k of the L2 distance between what enters a layer and what entered the one before, at each of `layers`.

    A budget chooses the ratio of all stages but the last, which keeps one token as in the released code (its ratio of 0
    is raised to one token). `published:192` is the released code's one half, 202.81 tokens on 32 layers and 576 patches; the
    paper's settings for 192, 128 and 64 (193.4, 130.7 and 66.4 tokens) are not released.
    """

    layers: tuple[PositiveInt, ...] = (3, 17, 22)
    """Layers before which tokens are dropped, of 32."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Counts patches x ratio, patches x ratio squared and so on, then 1."""
        return fit(keep, patches, depth, lambda ratio: self._member(patches, depth, ratio), match, [PUBLISHED_RATIO])

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The released code's only setting, under the budget that it stands for."""
        return {"192": self._member(patches, depth, PUBLISHED_RATIO)}

    def _member(self, patches: int, depth: int, ratio: float) -> Schedule:
        layers, powers = language_layers(self.layers, depth), range(1, len(self.layers))
        return staged(patches, depth, layers, [*(patches * ratio**power for power in powers), 1.0])

    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` tokens that moved farthest."""
        moved = site.hidden[site.image].float() - site.before[site.image].float()
        return highest(moved.norm(dim=-1), keep)
