"""How many visual tokens a method that prunes inside the language model keeps at which layer: integers, and their exact mean.

A budget is the mean number of visual tokens that enter a layer. Each such method has its own family of schedules with one free
parameter (FastV: how many tokens it keeps; PyramidDrop: its ratio), and `fit` finds the member that meets a budget. Published
counts are given for 576 patches, published layers for 32 layers (configs/published_layers.py); both are rescaled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from configs.budgets import in_words, published_name
from configs.counted import counted
from configs.experiment import Match
from configs.published_layers import half_up
from stage2_prune.errors import Infeasible

PUBLISHED_PATCHES = 576
"""Patches of the images for which papers give their counts."""
TOLERANCE = 0.5
"""Tokens by which a mean may miss its budget: the finest step of a family, one token in all later layers, is below 1."""
_BISECTIONS = 60
"""Halvings of the interval of members: more than float64 has bits."""


@dataclass(frozen=True)
class Stage:
    """One drop: before `layer` runs, `keep` of the visual tokens stay, and `merged` tokens are made of the others."""

    layer: int
    keep: int
    merged: int = 0


@dataclass(frozen=True)
class Schedule:
    """Where a method drops how many tokens, on a language model of `depth` layers."""

    depth: int
    entering: int
    """Visual tokens of the prompt: all patches, or what a selection before the language model left."""
    stages: tuple[Stage, ...] = ()
    """The drops by ascending layer. None is at layer 0, and each drops something."""

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Return the number of visual tokens that enter each layer."""
        after = {stage.layer: stage.keep + stage.merged for stage in self.stages}
        counts = [self.entering]
        for layer in range(1, self.depth):
            counts.append(after.get(layer, counts[-1]))
        return tuple(counts)

    @property
    def mean(self) -> float:
        """Return the mean of `tokens_per_layer`: the number at which methods are compared."""
        return sum(self.tokens_per_layer) / self.depth

    def kept(self, patches: int) -> int:
        """Return the visual tokens behind the first drop, which papers often call the number kept.

        A selection before the language model counts as the first drop.
        """
        if self.entering < patches or not self.stages:
            return self.entering
        return self.stages[0].keep + self.stages[0].merged

    @property
    def layers(self) -> tuple[int, ...]:
        """Return the layers before which tokens are dropped."""
        return tuple(stage.layer for stage in self.stages)

    def at(self, layer: int) -> Stage | None:
        """Return the drop before a layer, if there is one."""
        return next((stage for stage in self.stages if stage.layer == layer), None)


NAMED: dict[Match, str] = {"mean-tokens": "a mean", "kept": "a count", "kv": "a mean cache"}
"""What a budget is called in messages, by what it is matched to."""


def staged(
    entering: int,
    depth: int,
    layers: Sequence[int],
    counts: Sequence[int | float],
    merged: Callable[[int], int] = lambda dropped: 0,
) -> Schedule:
    """Build the schedule that keeps `counts` visual tokens before each of the ascending `layers`, which may coincide.

    Counts are rounded, at least 1 and at most what is left; of layers that coincide the last counts. `merged` says how many
    tokens a method makes of so many dropped ones.
    """
    count_at = dict(zip(layers, counts, strict=True))
    stages: list[Stage] = []
    left = entering
    for layer, count in count_at.items():
        keep = min(max(half_up(count), 1), left)
        if keep < left and layer:  # a single layer has nowhere to drop
            stages.append(Stage(layer, keep, min(merged(left - keep), left - keep)))
            left = keep + stages[-1].merged
    return Schedule(depth, entering, tuple(stages))


def measure(match: Match, patches: int) -> Callable[[Schedule], float]:
    """Return the function of a schedule whose value is compared with a budget.

    Each layer caches what enters it, and all layers cache equally many bytes a token: so the size of the cache, counted as
    tokens in every layer, is the mean too.
    """
    return (lambda schedule: schedule.kept(patches)) if match == "kept" else (lambda schedule: schedule.mean)


def fit(
    keep: int | float,
    patches: int,
    depth: int,
    member: Callable[[float], Schedule],
    match: Match = "mean-tokens",
    published: Sequence[float] = (),
) -> Schedule:
    """Find the member of a family that is nearest to `keep`, by its mean over layers or by what else is to `match`.

    `member(0)` keeps the fewest tokens, `member(1)` the most. Several members may have the same mean: where one of them is at a
    `published` fraction, `fit` returns that member. At keep = patches nothing is dropped, whatever the family. Raises
    Infeasible where no member comes within half a token.
    """
    measured = measure(match, patches)
    if keep == patches:
        return Schedule(depth, patches)
    least, most = member(0.0), member(1.0)
    best = min(*map(member, published), least, most, key=lambda schedule: abs(measured(schedule) - keep))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried = member(middle)
        best = min(best, tried, key=lambda schedule: abs(measured(schedule) - keep))
        low, high = (low, middle) if measured(tried) > keep else (middle, high)
    tolerance = 0 if match == "kept" else TOLERANCE  # a count of tokens is met or not
    if abs(measured(best) - keep) > tolerance:
        where = (
            f"from layer {least.layers[0]} of {depth} on" if least.layers else f"nowhere in {counted(depth, 'layer')}"
        )
        raise Infeasible(
            f"dropping tokens {where}, {NAMED[match]} of {measured(least):g} to {measured(most):g} visual tokens can be "
            f"had, not {keep:.10g}: change the budget or the method's layers"
        )
    return best


def published(budget: str, schedules: Mapping[str, Schedule]) -> Schedule:
    """Return the schedule that `budget` names among a method's published ones; raise Infeasible where none has that name."""
    name = published_name(budget)
    if name in schedules:
        return schedules[name]
    known = f"only {', '.join(schedules)}" if schedules else "nor any other"
    raise Infeasible(f"this method has no published schedule called {name}, {known}: change the budget")


def whole(budget: int | float | str, patches: int) -> int:
    """Return the visual tokens of an image for a method with an exact budget.

    Such methods publish counts of 576 patches: `published:192` is 192 there, and the same share of another number of patches.
    Raises Infeasible where the budget is no whole number of 1..patches.
    """
    if not isinstance(budget, str):
        count = budget
    elif (name := published_name(budget)).isdecimal():
        count = half_up(int(name) * patches / PUBLISHED_PATCHES)
    else:
        raise Infeasible(f"this method is published by tokens per image, not as {name}: change the budget")
    if count != int(count) or not 1 <= count <= patches:
        raise Infeasible(
            f"expected a whole number of 1 to {patches} visual tokens, which is what this method keeps of every image, got "
            f"{in_words(budget)}: leave the method out, or name such a number"
        )
    return int(count)


def between(tables: Sequence[Sequence[int | float]], fraction: float) -> list[float]:
    """Return counts at `fraction` in [0, 1] of the way along the tables, on the straight lines from each to the next.

    The first table is at 0, the last at 1.

    >>> between([(0, 0), (4, 2), (10, 10)], 0.75)
    [7.0, 6.0]
    """
    first = min(int(fraction * (len(tables) - 1)), len(tables) - 2)
    share = fraction * (len(tables) - 1) - first
    return [low + share * (high - low) for low, high in zip(tables[first], tables[first + 1], strict=True)]
