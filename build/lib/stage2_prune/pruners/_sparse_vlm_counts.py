"""Visual tokens that SparseVLM and SparseVLM+ keep after each of three layers, and the clusters made of what they drop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.pruning.schedule import PUBLISHED_PATCHES, Schedule, between, fit, staged

FIRST_SHORTER_LAYERS = (3, 7, 16)
"""Layers that are the first to see fewer tokens, of 32: tokens are dropped after layers 2, 6 and 15 have run."""
RECYCLED_SHARE = 0.3
"""Share of the dropped tokens, the best of them, that go into clusters."""
TOKENS_PER_CLUSTER = 10
"""Recycled tokens for which one cluster is made."""


@dataclass(frozen=True)
class Published:
    """Published counts on a model of `depth` layers and an image of `patches`, and the lines between them."""

    counts: Mapping[str, Sequence[int]]
    """By nominal budget, ascending; of 576 patches."""
    patches: int
    depth: int
    recycle: bool
    """Whether clusters of dropped tokens are kept too."""

    def schedules(self) -> Mapping[str, Schedule]:
        """The published schedules by nominal budget."""
        return {name: self._member(place) for name, place in zip(self.counts, self._places(), strict=True)}

    def fit(self, keep: int | float, match: Match) -> Schedule:
        """The schedule between the published ones that meets `keep`, from no token to all of them."""
        return fit(keep, self.patches, self.depth, self._member, match, self._places())

    def _places(self) -> list[float]:
        """Where the published tables stand among all."""
        return [number / (len(self.counts) + 1) for number in range(1, len(self.counts) + 1)]

    def _member(self, place: float) -> Schedule:
        layers = language_layers(FIRST_SHORTER_LAYERS, self.depth)
        share = self.patches / PUBLISHED_PATCHES
        middle = [[count * share for count in row] for row in self.counts.values()]
        tables = [[0.0] * len(layers), *middle, [float(self.patches)] * len(layers)]
        clusters = made if self.recycle else (lambda dropped: 0)
        return staged(self.patches, self.depth, layers, between(tables, place), clusters)


def recycled(dropped: int) -> int:
    """Dropped tokens that go into clusters."""
    return int(RECYCLED_SHARE * dropped) + 1


def made(dropped: int) -> int:
    """Clusters that are made of them."""
    return recycled(dropped) // TOKENS_PER_CLUSTER + 1
