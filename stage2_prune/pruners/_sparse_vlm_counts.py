"""How many tokens SparseVLM and SparseVLM+ keep after each of three layers, and how many clusters recycle the dropped ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.pruning.schedule import PUBLISHED_PATCHES, Schedule, between, fit, staged

FIRST_SHORTER_LAYERS = (3, 7, 16)
"""Layers that are the first to see fewer tokens, of 32: tokens are dropped after layers 2, 6 and 15 have run."""
RECYCLED_SHARE = 0.3
"""Share of the dropped tokens that go into clusters; these are the best of them."""
TOKENS_PER_CLUSTER = 10
"""Recycled tokens for which one cluster is made."""


@dataclass(frozen=True)
class Published:
    """Published counts on a model of `depth` layers and an image of `patches`, and the straight lines between these counts."""

    counts: Mapping[str, Sequence[int]]
    """Counts by nominal budget, ascending, of 576 patches."""
    patches: int
    depth: int
    recycle: bool
    """Whether clusters of dropped tokens are kept too."""

    def schedules(self) -> Mapping[str, Schedule]:
        """Return the published schedules by nominal budget."""
        return {name: self._member(at) for name, at in zip(self.counts, self._fractions(), strict=True)}

    def fit(self, keep: int | float, match: Match) -> Schedule:
        """Return the schedule on the lines from no token over the published ones to all tokens that meets `keep`."""
        return fit(keep, self.patches, self.depth, self._member, match, self._fractions())

    def _fractions(self) -> list[float]:
        """Return where the published tables stand, as fractions of the way from no token to all tokens."""
        return [number / (len(self.counts) + 1) for number in range(1, len(self.counts) + 1)]

    def _member(self, fraction: float) -> Schedule:
        layers = language_layers(FIRST_SHORTER_LAYERS, self.depth)
        share = self.patches / PUBLISHED_PATCHES
        middle = [[count * share for count in counts] for counts in self.counts.values()]
        tables = [[0.0] * len(layers), *middle, [float(self.patches)] * len(layers)]
        clusters = made if self.recycle else (lambda dropped: 0)
        return staged(self.patches, self.depth, layers, between(tables, fraction), clusters)


def recycled(dropped: int) -> int:
    """Return how many of the dropped tokens go into clusters."""
    return int(RECYCLED_SHARE * dropped) + 1


def made(dropped: int) -> int:
    """Return how many clusters are made of the recycled tokens."""
    return recycled(dropped) // TOKENS_PER_CLUSTER + 1
