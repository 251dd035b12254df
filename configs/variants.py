"""The methods of a sweep: those that it names, each with every combination of the parameters that it varies."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from configs.experiment import Experiment, Method
from configs.parsing.nearest import did_you_mean, no_such
from configs.parsing.problems import Problem

Values = Literal["every"] | tuple[Any, ...]


def variants(experiment: Experiment, pruners: Mapping[str, type]) -> tuple[list[Method], list[Problem]]:
    """The methods with their parameters, in the order of the names, each once; and what is wrong with the sweep."""
    chosen, problems = _chosen(experiment, pruners)
    found: list[Method] = []
    axes: dict[str, dict[str, tuple[Any, ...]]] = {}
    for key, values in sorted(experiment.sweep.vary.items(), key=lambda item: "." in item[0]):  # one method's win
        axes[key], wrong = _axis(key, values, pruners)
        problems += wrong
    for method in chosen:
        mine = {key.rpartition(".")[2]: axis[method.name] for key, axis in axes.items() if method.name in axis}
        for combination in product(*mine.values()):
            crossed = method.parameters | dict(zip(mine, combination, strict=True))
            one = Method.model_validate({"name": method.name, "weights": method.weights, **crossed})
            if one not in found:
                found.append(one)
    return found, problems


def _chosen(experiment: Experiment, pruners: Mapping[str, type]) -> tuple[list[Method], list[Problem]]:
    """The methods before anything is varied: as prune.methods has them, otherwise with their defaults."""
    section, configured = experiment.sweep, experiment.prune.methods
    named = {"methods": () if isinstance(section.methods, str) else section.methods, "without": section.without}
    problems = [
        Problem(("sweep", where), no_such("pruner", name, pruners))
        for where, names in named.items()
        for name in names
        if name not in pruners
    ]
    wanted = list(pruners) if section.methods == "all" else [method.name for method in configured]
    names = wanted if isinstance(section.methods, str) else list(section.methods)
    found: list[Method] = []
    for name in dict.fromkeys(names):
        if name in pruners and name not in section.without:
            found += [method for method in configured if method.name == name] or [Method(name=name)]
    if not found and section.without and not problems:
        said = f"expected to leave a method (got {', '.join(section.without)})"
        problems.append(Problem(("sweep", "without"), said))
    return found, problems


def _axis(key: str, values: Values, pruners: Mapping[str, type]) -> tuple[dict[str, tuple[Any, ...]], list[Problem]]:
    """The values of one parameter for each method that has it."""
    of, _, field = key.rpartition(".")
    where = ("sweep", "vary", key)
    if of and of not in pruners:
        return {}, [Problem(where, no_such("pruner", of, pruners))]
    holders = {name: found for name, found in pruners.items() if of in ("", name) and field in _fields(found)}
    if not holders:
        known = [name for found, pruner in pruners.items() if of in ("", found) for name in _fields(pruner)]
        said = f"{of or 'no method'} has {'no' if of else 'a'} parameter {field!r}{did_you_mean(field, known)}"
        return {}, [Problem(where, said)]
    if values == "every":
        axis = {name: _each(found, field) for name, found in holders.items()}
        endless = [name for name, each in axis.items() if not each]
        said = f"{', '.join(endless)} takes any of endless values (got 'every'): list some"
        return axis, [Problem(where, said)] if endless else []
    axis = {name: tuple(_accepted(found, field, values)) for name, found in holders.items()}
    refused = [value for value in values if not any(value in accepted for accepted in axis.values())]
    wrong = [Problem(where, f"a value that {', '.join(holders)} cannot take (got {value!r})") for value in refused]
    return {name: accepted for name, accepted in axis.items() if accepted}, wrong


def _fields(pruner: type) -> Sequence[str]:
    return [field.name for field in dataclasses.fields(pruner)]


def _each(pruner: type, field: str) -> tuple[Any, ...]:
    """Every value of a parameter that is one of a few; none of one that is not."""
    kind = get_type_hints(pruner, include_extras=True)[field]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is bool:
        return (False, True)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _accepted(pruner: type, field: str, values: Sequence[Any]) -> Iterator[Any]:
    """The values that this method's parameter can have."""
    for value in values:
        try:
            TypeAdapter(pruner).validate_python({field: value})
        except ValidationError:
            continue
        yield value
