"""Learned scores at several layers inside the language model, each of which drops more of the visual tokens.

This is the method of the system that this project grew from; it has no paper. At each of a few layers a small network of its own
scores the tokens that are still there from their hidden states, and each layer keeps the same share of what is left. In training
the mask is soft and multiplies hidden states; in an evaluation tokens are dropped, and scores multiply nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from configs.experiment import Match
from configs.published_layers import half_up, language_layers
from stage2_prune.modules.inside import ByLayer, TokenScorer, before_layer_0
from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Schedule, fit, staged
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.pruning.trained_inside import SoftInside


@dataclass(frozen=True)
class LayerPruner(SoftInside):
    """Keeps the highest learned scores before each of `layers`; a budget chooses the share of what is left that each keeps.

    Layer 0 scores the projected features before the language model, without the question; with it every budget is met.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})  # these belong to layer 0

    layers: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 8, 16, 24)
    """Layers before which tokens are dropped, of 32."""
    hidden: PositiveInt = 256
    """Width of the hidden layer of each scoring network."""
    asking: bool = False
    """Whether scores inside the model read the hidden state of the prompt's last token too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset({"projected"} if 0 in self.layers else ()))

    @property
    def asks(self) -> bool:
        """Return whether scores read the question."""
        return self.asking

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return the schedule in which each layer keeps the same share of what is left."""
        inside = self.scored_layers(depth)

        def member(share: float) -> Schedule:
            counts = [patches * share**power for power in range(1, len(inside) + 2)]
            entering = max(half_up(counts.pop(0)), 1) if 0 in self.layers else patches
            return staged(entering, depth, inside, counts[: len(inside)])

        return fit(keep, patches, depth, member, match)

    def scored_layers(self, depth: int) -> Sequence[int]:
        """Return the layers inside the model: all but layer 0."""
        return tuple(dict.fromkeys(language_layers([layer for layer in self.layers if layer], depth)))

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build a scoring network for each layer."""
        layers = sorted(self.layers)
        return ByLayer(layers, [TokenScorer(spec.embed, self.hidden, self.asking and layer > 0) for layer in layers])

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the patches that enter."""
        if 0 not in self.layers:
            return super().select(tokens, keep)
        ranking = ranking_of(before_layer_0(self.module, tokens.arrays["projected"]), tokens.image_ids, self.seed)
        return ranking[:, :keep].sort(dim=-1).values

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return the soft weights with which patches enter."""
        if 0 not in self.layers:
            return super().soft(tokens, keep)
        return soft_top_k(before_layer_0(self.module, tokens.arrays["projected"]), keep, self.temperature)
