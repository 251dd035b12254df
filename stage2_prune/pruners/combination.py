"""A selection before the language model, and a drop inside it: VScan's second stage behind any first stage.

VScan (Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", TMLR 2026),
Tencent/SelfEvolvingAgent; this is its language-model stage, reimplemented from the description. It reads the attention of the
prompt's last token at layer 16 of 32, as PyramidDrop does. It was published with a half or a third kept there (96 -> 32 tokens
for 64), and compact positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from configs import plugin
from configs.experiment import Match
from configs.published_layers import half_up, language_layers
from stage2_prune import pruners
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruners.pyramid_drop import PyramidDrop
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.schedule import Schedule, fit, staged, whole
from stage2_prune.pruning.tokens import Pruned, VisualTokens


@dataclass(frozen=True)
class Combination(PyramidDrop):
    """Lets the patches of a selection method enter, and keeps `ratio` of them by the last token's attention before each of
    `layers`.

    A budget chooses how many enter. The selection runs with its default parameters.
    """

    needs: ClassVar[frozenset[str]] = frozenset(
        {"cls_attention"}
    )  # these belong to the default `before`; an instance has its own

    layers: tuple[PositiveInt, ...] = (16,)
    before: str = "cls_attention"
    """The selection method, by its name or by the path of its file."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    """Share of the tokens that each drop keeps."""

    def __post_init__(self) -> None:
        first = plugin.find(pruners, self.before, Pruner)
        if first.place != "before_llm" or first.budget != "exact" or issubclass(first, TrainedPruner):
            raise PrunerMisused(
                f"expected a training-free selection method with an exact budget before the language model, got {self.before}: "
                "set `before` to another, such as cls_attention"
            )
        object.__setattr__(self, "needs", first.needs)
        object.__setattr__(self, "reads", first.reads)

    @property
    def code(self) -> str:
        """Return the digest of this method's code and of the selection method's, which is imported by its name."""
        return f"{super().code[:32]}{plugin.find(pruners, self.before, Pruner)().code[:32]}"

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return the schedule in which as many tokens enter as make the mean, and each stage keeps its share of them."""
        layers, powers = language_layers(self.layers, depth), range(1, len(self.layers) + 1)

        def selected(entering: int) -> Schedule:
            return staged(entering, depth, layers, [entering * self.ratio**power for power in powers])

        if match == "kept" and keep < patches:  # the selection is the first drop
            return selected(whole(keep, patches))
        return fit(keep, patches, depth, lambda share: selected(max(half_up(share * patches), 1)), match)

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """Return no schedule: the two parts are published apart."""
        return {}

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return what the selection before the language model leaves."""
        return plugin.find(pruners, self.before, Pruner)().prune(tokens.only(self.needs, self.reads), keep)
