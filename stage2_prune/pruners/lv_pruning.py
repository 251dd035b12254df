"""Small modules before a few layers, in which visual tokens attend to the question, decide which of them stay.

LVPruning (Sun et al., arXiv 2501.13652), reimplemented from the description: the language model is untouched, the modules learn
by straight-through decisions and a ratio loss. Its layers, widths and weights are not known here: the defaults are this
project's choice, and none is called published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt
from torch import nn

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.modules.inside import ByLayer, TokenToText
from stage2_prune.pruners._gumbel_inside import GumbelInside
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Schedule, fit, staged


@dataclass(frozen=True)
class LvPruning(GumbelInside):
    """Keeps the visual tokens with the highest logits before each of `layers`; a budget chooses the share that each keeps."""

    layers: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (2, 8, 16)
    """Layers before which tokens are dropped, of 32."""
    width: PositiveInt = 256
    """Width of a module, a multiple of `heads`."""
    heads: PositiveInt = 4
    """Heads of its cross-attention."""

    @property
    def asks(self) -> bool:
        """Return that the question is read."""
        return True

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return the schedule in which each layer keeps the same share of what is left."""
        layers = self.scored_layers(depth)
        powers = range(1, len(layers) + 1)

        def member(share: float) -> Schedule:
            return staged(patches, depth, layers, [patches * share**power for power in powers])

        return fit(keep, patches, depth, member, match)

    def scored_layers(self, depth: int) -> Sequence[int]:
        """Return the layers, of which some coincide on a shallow model."""
        return tuple(dict.fromkeys(language_layers(self.layers, depth)))

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build a module for each layer."""
        return ByLayer(sorted(self.layers), [TokenToText(spec.embed, self.width, self.heads) for _ in self.layers])
