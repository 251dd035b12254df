# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (YAML may hold anything)
"""YAML file + command-line overrides -> one frozen `Experiment`, with every problem reported at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from configs.atomic import write_atomically
from configs.errors import ConfigError
from configs.experiment import Experiment, Method
from configs.seal import sealed
from configs.strict_yaml import parse
from configs.variants import variants

MAX_CONFIG_BYTES = 1_000_000
_SHOWN = 80
"""Characters of a wrong value in a message."""


def load(path: Path, overrides: Mapping[str, Any], pruners: Mapping[str, type] | None = None) -> Experiment:
    """Read `path`, lay `overrides` (dotted key -> value) over it, validate everything once.

    `pruners` are the stage's pruner classes by name: with them the parameters of `prune.methods` are validated too.
    Raises ConfigError naming each problem by line and dotted path, with the value received.
    """
    raw, lines = _read_yaml(path)
    for dotted, value in overrides.items():
        _lay_over(raw, dotted, value)
    problems = _retired_keys(raw)
    name = str(raw.setdefault("name", path.stem))
    raw.setdefault("run_dir", Path("runs") / name)
    experiment: Experiment | None = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        retired = [problem.split(":")[0] for problem in problems]
        problems += [line for line in _lines(error) if line.split(":")[0] not in retired]
    if experiment is not None and pruners is not None:
        problems += _method_problems(experiment.prune.methods, pruners)
        problems += variants(experiment, pruners)[1]
    if problems or experiment is None:
        plural = "problem" if len(problems) == 1 else "problems"
        listed = "".join(f"\n  {_place(problem, lines, overrides)}{problem}" for problem in problems)
        raise ConfigError(f"{path}: {len(problems)} {plural}{listed}")
    return experiment


def save_resolved(experiment: Experiment, folder: Path) -> None:
    """Write the config that produced an output beside it, as `config.yaml`."""
    text = yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False)
    write_atomically(folder / "config.yaml", sealed(text))


def build_pruner(method: Method, pruners: Mapping[str, type]) -> Any:
    """The pruner that `method` describes; ConfigError if its name or a parameter is wrong."""
    problems = _method_problems((method,), pruners)
    if problems:
        raise ConfigError("; ".join(problems))
    return TypeAdapter(pruners[method.name]).validate_python(method.parameters)


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    if not path.is_file():
        raise ConfigError(
            f"expected a config file, found none at {path}: name one with --config, such as configs/demo.yaml"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: a config has at most {MAX_CONFIG_BYTES} bytes, this file has {path.stat().st_size}")
    try:
        raw, lines = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections such as `model:` and `data:`, found {type(raw).__name__}")
    return raw, lines


def _lay_over(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node = raw
    for key in parents:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {key!r} is {child!r} in the config, so nothing can be set inside it")
        node = child
    node[leaf] = value


def _retired_keys(node: Any, path: str = "") -> list[str]:
    """Keys of the hunt that this project replaces: told where the need is met now."""
    if not isinstance(node, dict):
        return []
    found = []
    for key, value in node.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key == "debug_all_ones":
            found.append(
                f"{dotted}: retired (got {value!r}); run `make parity`, which proves all-ones equality with no edit"
            )
        found += _retired_keys(value, dotted)
    return found


def _method_problems(methods: tuple[Method, ...], pruners: Mapping[str, type]) -> list[str]:
    problems = []
    for index, method in enumerate(methods):
        where = f"prune.methods.{index}"
        if method.name not in pruners:
            problems.append(f"{where}.name: no such pruner (got {method.name!r}); there are {', '.join(pruners)}")
            continue
        try:
            TypeAdapter(pruners[method.name]).validate_python(method.parameters)
        except ValidationError as error:
            problems += [f"{where}.{line}" for line in _lines(error)]
    return problems


def _lines(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {_short(e['input'])})" for e in error.errors()]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _place(problem: str, lines: Mapping[str, int], overrides: Mapping[str, Any]) -> str:
    """The line of what a problem is about, or of the nearest section around it; nothing for a flag's value."""
    path = problem.split(":")[0]
    while path:
        if path in overrides:
            return ""
        if path in lines:
            return f"line {lines[path]}: "
        path = path.rpartition(".")[0]
    return ""
