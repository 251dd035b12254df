"""A pyramid: at a few layers, ever fewer of the visual tokens that the last token of the prompt attends to.

PyramidDrop (Xing et al., CVPR 2025), Cooperx521/PyramidDrop at 6444f30; reimplemented from the formula. Reads the
attention that the next layer is about to have, averaged over heads; published at layers 8, 16 and 24 of 32, each
keeping half of what is left, positions made consecutive again after every drop.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import PositiveInt

from configs.experiment import Match, Positions
from configs.published_layers import language_layers
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule, fit, staged

PUBLISHED_RATIO = 0.5
"""Share of the tokens of one stage that the next keeps."""


@dataclass(frozen=True)
class PyramidDrop(InLLMPruner):
    """Top-k of the last token's attention at each of `layers`, by one ratio from each stage to the next.

    A budget chooses the ratio: 270 tokens is the published one half, also called `published:270`. Counts are shares of all
    patches, as in the released code (which rounds them down), and not of the stage before. Low budgets need earlier layers;
    the settings behind published rows at 64 tokens are not documented.
    """

    positions: ClassVar[Positions] = "compact"

    layers: tuple[PositiveInt, ...] = (8, 16, 24)
    """Layers before which tokens are dropped, of 32."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Counts patches x ratio, patches x ratio squared and so on."""
        return fit(keep, patches, depth, lambda ratio: self._member(patches, depth, ratio), match, [PUBLISHED_RATIO])

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The published pyramid, by its mean on 32 layers and 576 patches."""
        return {"270": self._member(patches, depth, PUBLISHED_RATIO)}

    def _member(self, patches: int, depth: int, ratio: float) -> Schedule:
        layers, powers = language_layers(self.layers, depth), range(1, len(self.layers) + 1)
        return staged(patches, depth, layers, [patches * ratio**power for power in powers])

    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` most attended tokens."""
        return highest(site.attention(site.last, ahead=True).mean(0)[0, site.image], keep)
