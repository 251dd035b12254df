"""The methods of a sweep: the methods that it names, each with every combination of the parameters that it varies."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.experiment import Experiment, Method
from configs.parsing.nearest import did_you_mean, no_such
from configs.parsing.parameters import adapter_of
from configs.parsing.problems import Problem
from configs.plugin import usable

Values = Literal["every"] | tuple[Any, ...]


def variants(experiment: Experiment, pruners: Mapping[str, type]) -> tuple[list[Method], list[Problem]]:
    """List the methods of a sweep with their parameters, in the order of the names and each once.

    Args:
        experiment: The experiment with the section `sweep`.
        pruners: Pruner classes by name.

    Returns:
        The methods, and the problems of the section `sweep`.

    """
    chosen, problems = _chosen(experiment, pruners)
    methods: list[Method] = []
    axes: dict[str, dict[str, tuple[Any, ...]]] = {}
    for key, values in sorted(
        experiment.sweep.vary.items(), key=lambda item: "." in item[0]
    ):  # last, so that values for a named method win
        axes[key], invalid = _axis(key, values, pruners, chosen)
        problems += invalid
    for method in chosen:
        axes_of_method = {
            key.rpartition(".")[2]: axis[method.name] for key, axis in axes.items() if method.name in axis
        }
        for combination in product(*axes_of_method.values()):
            crossed = method.parameters | dict(zip(axes_of_method, combination, strict=True))
            named = {"name": method.name, "label": method.label, "weights": method.weights}
            variant = Method.model_validate({**named, **crossed})
            if variant not in methods:
                methods.append(variant)
    return methods, problems


def refusal(name: str, pruners: Mapping[str, type]) -> str | None:
    """Say why a name stands for no pruner: there is none, or its code or parameters cannot be read; None where there is one."""
    if name not in pruners:
        return no_such("pruner", name, pruners)
    try:
        adapter_of(pruners[name])
    except ConfigError as error:
        return str(error)
    return None


def _chosen(experiment: Experiment, pruners: Mapping[str, type]) -> tuple[list[Method], list[Problem]]:
    """List the methods before their parameters are varied: as prune.methods has them, otherwise with their defaults."""
    section, configured = experiment.sweep, experiment.prune.methods
    named = {"methods": () if isinstance(section.methods, str) else section.methods, "without": section.without}
    refused = [(key, refusal(name, pruners)) for key, names in named.items() for name in names]
    problems = [Problem(("sweep", key), reason) for key, reason in refused if reason is not None]
    wanted = [
        *(usable(pruners, adapter_of) if section.methods == "all" else ()),
        *(method.name for method in configured),
    ]
    names = wanted if isinstance(section.methods, str) else list(section.methods)
    methods: list[Method] = []
    for name in dict.fromkeys(names):
        if name in pruners and name not in section.without:
            methods += [method for method in configured if method.name == name] or [Method(name=name)]
    if not methods and section.without and not problems:
        message = (
            f"expected to leave a method in the sweep, every method is left out (got {', '.join(section.without)})"
        )
        problems.append(Problem(("sweep", "without"), message))
    return methods, problems


def _axis(
    key: str, values: Values, pruners: Mapping[str, type], chosen: Sequence[Method]
) -> tuple[dict[str, tuple[Any, ...]], list[Problem]]:
    """Return the values of one key of `sweep.vary` for each method that has the parameter, and the problems of that key."""
    owner, _, field = key.rpartition(".")
    path = ("sweep", "vary", key)
    labels = {method.known_as: method.name for method in chosen}
    owner = labels.get(owner, owner)
    if owner and (refused := refusal(owner, pruners)):
        return {}, [Problem(path, refused)]
    candidates = [owner] if owner else dict.fromkeys([*pruners, *labels.values()])
    fields = {name: _fields(pruners[name]) for name in candidates if refusal(name, pruners) is None}
    holders = {name: pruners[name] for name, known in fields.items() if field in known}
    if not holders:
        known = [name for names in fields.values() for name in names]
        message = f"{owner or 'no method'} has {'no' if owner else 'a'} parameter {field!r}{did_you_mean(field, known)}"
        return {}, [Problem(path, message)]
    if values == "every":
        axis = {name: _each(pruner, field) for name, pruner in holders.items()}
        endless = [name for name, accepted in axis.items() if not accepted]
        message = f"{', '.join(endless)} takes any of endless values (got 'every'): list some values"
        return axis, [Problem(path, message)] if endless else []
    axis = {name: tuple(_accepted(pruner, field, values)) for name, pruner in holders.items()}
    refused = [value for value in values if not any(value in accepted for accepted in axis.values())]
    wrong = [Problem(path, f"a value that {', '.join(holders)} cannot take (got {value!r})") for value in refused]
    return {name: accepted for name, accepted in axis.items() if accepted}, wrong


def _fields(pruner: type) -> Sequence[str]:
    return [field.name for field in dataclasses.fields(pruner)]


def _each(pruner: type, field: str) -> tuple[Any, ...]:
    """Return every value of a parameter that is a boolean or one of a few words; nothing for any other parameter."""
    kind = get_type_hints(pruner, include_extras=True)[field]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is bool:
        return (False, True)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _accepted(pruner: type, field: str, values: Sequence[Any]) -> Iterator[Any]:
    """Yield the values that the method accepts for this parameter."""
    for value in values:
        try:
            adapter_of(pruner).validate_python({field: value})
        except ValidationError:
            continue
        yield value
