# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (YAML may hold anything)
"""Load a config: a YAML file and command-line overrides become one frozen `Experiment`; all problems are reported at once."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.counted import counted
from configs.errors import ConfigError, typed
from configs.experiment import Experiment, Method
from configs.files import portable
from configs.files.atomic import write_atomically
from configs.files.seal import sealed
from configs.parsing.nearest import no_such
from configs.parsing.parameters import adapter_of
from configs.parsing.problems import Problem, fields_of, listed, problems_of, short
from configs.parsing.strict_yaml import Places, parse
from configs.variants import refusal, variants

MAX_CONFIG_BYTES = 1_000_000


def load(path: Path, overrides: Mapping[str, Any], pruners: Mapping[str, type] | None = None) -> Experiment:
    """Read a config file, lay the overrides over it, and validate the result.

    Args:
        path: The YAML file.
        overrides: Values by dotted key, such as `train.epochs`; they win over the file.
        pruners: The stage's pruner classes by name or path; with them the parameters of `prune.methods` are validated too.

    Raises:
        ConfigError: (exit 2) It names each problem by its line or its flag and by its dotted path, with the value received.

    """
    raw, places = _read_yaml(path)
    raw = portable.read(raw, path.parent)
    for flag, value in overrides.items():
        _lay_over(raw, flag, value)
    problems = _retired_keys(raw)
    name = str(raw.setdefault("name", path.stem))
    raw.setdefault("run_dir", Path("runs") / name)
    experiment: Experiment | None = None
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        retired = {problem.path for problem in problems}
        invalid = problems_of(error, raw, fields_of(Experiment))
        problems += [problem for problem in invalid if problem.path not in retired]
    if experiment is not None and pruners is not None:
        problems += _pruner_problems(experiment, pruners)
    if problems or experiment is None:
        raise ConfigError(_report(path, problems, places, overrides))
    return experiment


def save_resolved(experiment: Experiment, folder: Path) -> None:
    """Write the config that produced an output beside it, as `config.yaml`, its paths relative to that file."""
    text = yaml.safe_dump(portable.saved(experiment, folder), sort_keys=False)
    write_atomically(folder / "config.yaml", sealed(text))


def method_of(name: str, parameters: Mapping[str, Any]) -> Method:
    """Describe a method as a config does; ConfigError (exit 2) if its name or the form of a value is wrong."""
    given = {"name": name, **parameters}
    try:
        return Method.model_validate(given)
    except ValidationError as error:
        problems = problems_of(error, given, fields_of(Method), (name,))
        raise ConfigError("; ".join(map(str, problems))) from None


def build_pruner(method: Method, pruners: Mapping[str, type]) -> Any:
    """Build the pruner that `method` describes; ConfigError (exit 2) if its name or a parameter is wrong."""
    problems = _method_problems(method, pruners)
    if problems:
        raise ConfigError("; ".join(map(str, problems)))
    return adapter_of(pruners[method.name]).validate_python(method.parameters)


def _read_yaml(path: Path) -> tuple[dict[str, Any], Places]:
    if not path.is_file():
        raise ConfigError(
            f"expected a config file, found none at {path}: name one with --config, such as configs/demo.yaml"
        )
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path}: expected a config of at most {MAX_CONFIG_BYTES} bytes, this file has {path.stat().st_size}"
        )
    try:
        raw, places = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        content = "it is empty" if raw is None else f"found {short(raw)}"
        raise ConfigError(f"{path}: expected sections such as `model:` and `data:`, {content}")
    return raw, places


def _lay_over(raw: dict[str, Any], flag: str, value: Any) -> None:
    *parents, leaf = flag.split(".")
    node = raw
    for key in parents:
        child = node.setdefault(key, {})
        if child is None:
            raise ConfigError(
                f"{flag}: expected keys below {key} in the config, there is nothing: add some, or remove {key}"
            )
        if not isinstance(child, dict):
            raise ConfigError(f"{flag}: {key!r} is {short(child)} in the config, so nothing can be set inside it")
        node = child
    node[leaf] = value


def _retired_keys(node: Any, path: tuple[str, ...] = ()) -> list[Problem]:
    """Find the keys of earlier projects that `parity` replaces; each problem names the command to run instead."""
    if not isinstance(node, dict):
        return []
    problems: list[Problem] = []
    for key, value in node.items():
        below = (*path, str(key))
        if key == "debug_all_ones":
            message = (
                f"retired (got {short(value)}); run {typed('parity')}, which proves all-ones equality with no edit"
            )
            problems.append(Problem(below, message))
        problems += _retired_keys(value, below)
    return problems


def _method_problems(method: Method, pruners: Mapping[str, type], below: tuple[str | int, ...] = ()) -> list[Problem]:
    refused = refusal(method.name, pruners)
    if refused is not None:
        return [Problem((*below, "name"), refused)]
    pruner = pruners[method.name]
    try:
        adapter_of(pruner).validate_python(method.parameters)
    except ValidationError as error:
        known = fields_of(Method) | {field.name: None for field in dataclasses.fields(pruner)}
        return problems_of(error, method.parameters, known, below)
    return []


def _pruner_problems(experiment: Experiment, pruners: Mapping[str, type]) -> list[Problem]:
    """Find the problems of all methods that the config names."""
    problems: list[Problem] = []
    for index, method in enumerate(experiment.prune.methods):
        problems += _method_problems(method, pruners, ("prune", "methods", index))
    trained = experiment.train.pruner.partition("@")[0]  # a label has parameters behind its @
    labels = [method.known_as for method in experiment.prune.methods if refusal(method.name, pruners) is None]
    if "pruner" in experiment.train.model_fields_set and trained not in [*labels, *pruners]:
        problems.append(Problem(("train", "pruner"), no_such("pruner", trained, [*labels, *pruners])))
    return problems + variants(experiment, pruners)[1]


def _report(path: Path, problems: list[Problem], places: Places, overrides: Mapping[str, Any]) -> str:
    """Write every problem on a line of its own, with the flag or the line of the file that it comes from."""
    of_flags: dict[tuple[str | int, ...], str] = {
        tuple(flag.split(".")): "--" + flag.replace("_", "-") for flag in overrides
    }

    def with_source(problem: Problem) -> str:
        for length in range(len(problem.path), 0, -1):
            if (flag := of_flags.get(problem.path[:length])) is not None:
                return f"{'.'.join([flag, *map(str, problem.path[length:])])}: {problem.message}"
        line = places.line(problem.path)
        return str(problem) if line is None else f"line {line}: {problem}"

    from_flags = [problem for problem in problems if any(problem.path[: len(flag)] == flag for flag in of_flags)]
    sources = [str(path)] * (len(from_flags) < len(problems)) + ["the command line"] * bool(from_flags)
    return f"{' and '.join(sources)}: {counted(len(problems), 'problem')}{listed(map(with_source, problems))}"
