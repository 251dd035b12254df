"""The rules for every method that prunes before the language model, and rules for parameters, seeds and learned weights."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from pydantic import ValidationError

from configs.parsing.nearest import did_you_mean
from configs.parsing.parameters import adapter_of
from stage2_prune.contract.rule import Broken, Case, Rule, chosen, pruned, require, same, shown
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.result import as_pruned
from stage2_prune.pruning.tokens import VisualTokens


def parameters_are_fields(kind: type[Pruner]) -> None:
    """Check that parameters are the fields of a frozen dataclass, have defaults, and that an unknown one is an error.

    Raises ConfigError (exit 2) for a field whose type no config can give.
    """
    untyped: Any = kind  # type stubs do not declare `__dataclass_params__`
    if not (dataclasses.is_dataclass(kind) and untyped.__dataclass_params__.frozen):
        raise Broken(f"{kind.__name__} is not a frozen dataclass: write @dataclass(frozen=True) above it")
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    require(not required, f"{', '.join(required)} has no default")
    adapter = adapter_of(kind)
    require(adapter.validate_python({}) == kind(), f"a config without parameters does not give {kind()}")
    try:
        adapter.validate_python({"no_such_parameter": 1})
    except ValidationError:
        return
    raise Broken(f"{kind.__name__} takes the parameter no_such_parameter")


def _returns(pruner: Pruner, case: Case) -> None:
    """Check that a pruner returns a result when it is given every array that a store may hold."""
    tokens, keep = case.tokens(), _middle(pruner, case)
    if pruner.needs - tokens.arrays.keys():  # the next rule reports arrays that no store holds
        return
    try:
        with torch.no_grad():
            as_pruned(pruner, pruner.prune(tokens, keep))
    except PrunerMisused as error:
        raise Broken(f"{case}, keep {keep}: {error}") from error


def _declares(pruner: Pruner, case: Case) -> None:
    """Check that a pruner reads nothing beside its `needs` and `reads`."""
    tokens, keep = case.tokens(), _middle(pruner, case)
    unknown = sorted(pruner.needs - tokens.arrays.keys())
    if unknown:
        meant = did_you_mean(unknown[0], tokens.arrays)
        raise Broken(f"`needs` names {', '.join(unknown)}, which no store has{meant}")
    with torch.no_grad():
        result = pruner.prune(tokens, keep)
    try:
        declared, again = (pruned(pruner, tokens, keep) for _ in range(2))
    except (KeyError, TypeError, AttributeError) as error:
        raise Broken(
            f"{case}, keep {keep}: with just the arrays of `needs` and what `reads` names, it raised "
            f"{type(error).__name__} ({error})"
        ) from error
    for image in range(case.images):
        own, other = chosen(declared, image), chosen(result, image)
        steady = same(own, chosen(again, image))  # a choice that varies breaks another rule
        require(
            same(own, other) or not steady,
            f"{case}, keep {keep}, image {image}: with what it declares it kept {shown(own)}, beside other arrays {shown(other)}",
        )


def _alone(pruner: Pruner, case: Case) -> None:
    """Check that an image is pruned alike alone and in a batch."""
    tokens = case.tokens()
    for keep in case.budgets(pruner):
        together = pruned(pruner, tokens, keep)
        for image in range(case.images):
            alone = chosen(pruned(pruner, tokens.one(image), keep), 0)
            among = chosen(together, image)
            require(
                same(alone, among),
                f"{case}, keep {keep}, image {image}: alone it kept {shown(alone)}, among {case.images} {shown(among)}",
            )


def _neighbours(pruner: Pruner, case: Case) -> None:
    """Check that the order of the images of a batch does not matter."""
    tokens, keep = case.tokens(), _middle(pruner, case)
    order = list(reversed(range(case.images)))
    first, turned = pruned(pruner, tokens, keep), pruned(pruner, tokens.at(order), keep)
    for position, image in enumerate(order):
        was, now = chosen(first, image), chosen(turned, position)
        require(
            same(was, now),
            f"{case}, keep {keep}, image {image}: it kept {shown(was)}, and {shown(now)} in a batch of the reverse order",
        )


def _twice(pruner: Pruner, case: Case) -> None:
    """Check that the same image is pruned alike twice, and that nothing is drawn from torch's global generator."""
    for keep in case.budgets(pruner):
        state = torch.get_rng_state()
        first, second = pruned(pruner, case.tokens(), keep), pruned(pruner, case.tokens(), keep)
        require(
            torch.equal(torch.get_rng_state(), state),
            f"{case}, keep {keep}: it draws from torch's global generator: draw from the seed and the image's id instead "
            "(stage2_prune/primitives/draw.py)",
        )
        for image in range(case.images):
            was, now = chosen(first, image), chosen(second, image)
            require(
                same(was, now),
                f"{case}, keep {keep}, image {image}: it kept {shown(was)}, the second time {shown(now)}",
            )


def _unwritten(pruner: Pruner, case: Case) -> None:
    """Check that the cached arrays are not written to."""
    tokens = case.tokens()
    for keep in case.budgets(pruner):
        pruned(pruner, tokens, keep)
    for name, array in case.tokens().arrays.items():
        require(
            torch.equal(tokens.arrays[name], array),
            f"{case}: it wrote to the array {name}, which other methods read too",
        )


def _seeded(pruner: Pruner, case: Case) -> None:
    """Check that a draw depends on the seed and on the image, and on nothing drawn before."""
    tokens, keep = case.tokens(), _middle(pruner, case)
    alike: VisualTokens = replace(
        tokens, arrays={name: array[:1].expand_as(array) for name, array in tokens.arrays.items()}
    )
    parameters = pruner.parameters()
    require("seed" in parameters, "it is `randomised` and has no field `seed`")
    seeded = [case.ready(type(pruner)(**{**parameters, "seed": seed})) for seed in (0, 1)]
    first, other = (pruned(each, alike, keep) for each in seeded)
    images = range(case.images)
    require(
        any(not same(chosen(first, image), chosen(other, image)) for image in images),
        f"{case}, keep {keep}: seeds 0 and 1 both kept {shown(chosen(first, 0))}",
    )
    require(
        any(not same(chosen(first, 0), chosen(first, image)) for image in images[1:]),
        f"{case}, keep {keep}: images of different ids all kept {shown(chosen(first, 0))}",
    )
    torch.rand(1)
    again = pruned(seeded[0], alike, keep)
    for image in images:
        was, now = chosen(first, image), chosen(again, image)
        require(
            same(was, now), f"{case}, keep {keep}, image {image}: it kept {shown(was)}, after another draw {shown(now)}"
        )


def _soft(pruner: Pruner, case: Case) -> None:
    """Check the soft weights that training uses."""
    assert isinstance(pruner, TrainedPruner), "only trained pruners have soft weights"
    tokens = case.tokens()
    declared = tokens.only(pruner.needs, pruner.reads)
    for keep in (1, tokens.patches // 2, tokens.patches):
        soft = pruner.soft(declared, keep)
        expected, shape = (case.images, tokens.patches), tuple(soft.shape)
        require(shape == expected, f"{case}, keep {keep}: expected weights of the shape {expected}, came {shape}")
        low, high = soft.min().item(), soft.max().item()
        require(0 <= low <= high <= 1, f"{case}, keep {keep}: weights from {low:g} to {high:g}")
        require(
            keep == tokens.patches or soft.requires_grad,
            f"{case}, keep {keep}: the weights have no gradient to train by",
        )
    require((soft == 1).all(), f"{case}, keep {keep}: weights from {low:g} to {high:g} where everything is kept")


def _middle(pruner: Pruner, case: Case) -> int:
    """Return the middle budget."""
    budgets = case.budgets(pruner)
    return budgets[len(budgets) // 2]


PARAMETERS = "Its parameters are the fields of a frozen dataclass with defaults, and an unknown one is an error"
RETURNS = Rule("`select` returns an integer tensor (image, keep), or `prune` a Pruned, and neither raises", _returns)
DECLARES = Rule("It looks at nothing but the arrays of `needs` and what `reads` names", _declares)
ALONE = Rule("An image is pruned alike alone and in a batch", _alone)
NEIGHBOURS = Rule("The order of the images in a batch does not matter", _neighbours)
TWICE = Rule("The same image is pruned alike twice", _twice)
UNWRITTEN = Rule("The cached arrays are not written to", _unwritten)
SEEDED = Rule("A draw depends on the seed and the image's id, and on nothing drawn before", _seeded)
SOFT = Rule("Soft weights lie between 0 and 1, have a gradient, and are exactly 1 where everything is kept", _soft)
