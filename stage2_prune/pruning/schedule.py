"""How many visual tokens a method that prunes inside the language model keeps, and where: integers, and their exact mean.

A budget is the mean number of visual tokens that enter a layer. Each such method has its own family of schedules with
one free parameter (FastV: how many tokens it keeps; PyramidDrop: its ratio); `fit` finds the member that meets a budget.
Published layers are given for 32 and published counts for 576 patches; both are rescaled here and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from configs.budgets import in_words, published_name
from configs.experiment import Match
from configs.published_layers import half_up
from stage2_prune.errors import Infeasible

PUBLISHED_PATCHES = 576
TOLERANCE = 0.5
"""Tokens that a mean may lie from its budget: the finest step of a family, one token in all later layers, is below 1."""
_BISECTIONS = 60


@dataclass(frozen=True)
class Stage:
    """One drop: before `layer` runs, `keep` of the visual tokens stay, and `merged` ones are made of the others."""

    layer: int
    keep: int
    merged: int = 0


@dataclass(frozen=True)
class Schedule:
    """Where a method drops how much, on a language model of `depth` layers."""

    depth: int
    entering: int
    """Visual tokens of the prompt: all patches, or what a selection before the language model left."""
    stages: tuple[Stage, ...] = ()
    """By ascending layer, none at layer 0, none that keeps everything."""

    @property
    def tokens_per_layer(self) -> tuple[int, ...]:
        """Visual tokens that enter each layer."""
        after = {stage.layer: stage.keep + stage.merged for stage in self.stages}
        counts = [self.entering]
        for layer in range(1, self.depth):
            counts.append(after.get(layer, counts[-1]))
        return tuple(counts)

    @property
    def mean(self) -> float:
        """Their mean over layers: the number that a method is compared at."""
        return sum(self.tokens_per_layer) / self.depth

    def kept(self, patches: int) -> int:
        """Visual tokens behind the first drop, which papers often call the number kept; a selection before the language
        model is one.
        """
        if self.entering < patches or not self.stages:
            return self.entering
        return self.stages[0].keep + self.stages[0].merged

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers before which tokens are dropped."""
        return tuple(stage.layer for stage in self.stages)

    def at(self, layer: int) -> Stage | None:
        """The drop before a layer, if there is one."""
        return next((stage for stage in self.stages if stage.layer == layer), None)


NAMED: dict[Match, str] = {"mean-tokens": "a mean", "kept": "a count", "kv": "a mean cache"}


def staged(
    entering: int,
    depth: int,
    layers: Sequence[int],
    counts: Sequence[int | float],
    merged: Callable[[int], int] = lambda dropped: 0,
) -> Schedule:
    """The schedule that keeps `counts` visual tokens before each of the ascending `layers`, which may coincide.

    Counts are rounded, at least 1 and at most what is left; of layers that coincide the last counts.
    `merged` says how many tokens a method makes of so many dropped ones.
    """
    wanted = dict(zip(layers, counts, strict=True))
    stages: list[Stage] = []
    left = entering
    for layer, count in wanted.items():
        keep = min(max(half_up(count), 1), left)
        if keep < left and layer:  # a single layer has nowhere to drop
            stages.append(Stage(layer, keep, min(merged(left - keep), left - keep)))
            left = keep + stages[-1].merged
    return Schedule(depth, entering, tuple(stages))


def measure(match: Match, patches: int) -> Callable[[Schedule], float]:
    """What is compared with a budget. Each layer caches what enters it, and all layers as many bytes a token: so the size
    of the cache, as tokens in every layer, is their mean too.
    """
    return (lambda one: one.kept(patches)) if match == "kept" else (lambda one: one.mean)


def fit(
    keep: int | float,
    patches: int,
    depth: int,
    member: Callable[[float], Schedule],
    match: Match = "mean-tokens",
    published: Sequence[float] = (),
) -> Schedule:
    """Find the member of a family that is nearest to `keep`, by its mean over layers or what else is to `match`.

    `member(0)` keeps the fewest tokens, `member(1)` the most. Several members may have one mean: where one of them is at a
    `published` place, it is the one that is found. Raises Infeasible where no member comes within half a token; at
    keep = patches nothing is dropped, whatever the family.
    """
    measured = measure(match, patches)
    if keep == patches:
        return Schedule(depth, patches)
    least, most = member(0.0), member(1.0)
    best = min(*map(member, published), least, most, key=lambda one: abs(measured(one) - keep))
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        found = member(middle)
        best = min(best, found, key=lambda one: abs(measured(one) - keep))
        low, high = (low, middle) if measured(found) > keep else (middle, high)
    tolerance = 0 if match == "kept" else TOLERANCE  # a count of tokens is met or not
    if abs(measured(best) - keep) > tolerance:
        where = f"from layer {least.layers[0]} of {depth} on" if least.layers else f"nowhere in {depth} layers"
        raise Infeasible(
            f"dropping tokens {where}, {NAMED[match]} of {measured(least):g} to {measured(most):g} visual tokens can be "
            f"had, not {keep:.10g}: change the budget or the method's layers"
        )
    return best


def published(budget: str, schedules: Mapping[str, Schedule]) -> Schedule:
    """The schedule that `budget` names among a method's published ones; Infeasible where it has none of that name."""
    name = published_name(budget)
    if name in schedules:
        return schedules[name]
    known = f"only {', '.join(schedules)}" if schedules else "nor any other"
    raise Infeasible(f"this method has no published schedule called {name}, {known}: change the budget")


def whole(budget: int | float | str, patches: int) -> int:
    """Visual tokens of an image for a method with an exact budget; Infeasible where that is no whole number of 1..patches.

    Such methods publish counts of 576 patches: `published:192` is 192 there, and the same share of another number of patches.
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


def between(tables: Sequence[Sequence[int | float]], place: float) -> list[float]:
    """Counts at `place` in [0, 1] on the straight lines from each table to the next, the first at 0, the last at 1.

    >>> between([(0, 0), (4, 2), (10, 10)], 0.75)
    [7.0, 6.0]
    """
    segment = min(int(place * (len(tables) - 1)), len(tables) - 2)
    share = place * (len(tables) - 1) - segment
    return [low + share * (high - low) for low, high in zip(tables[segment], tables[segment + 1], strict=True)]
