"""Where an experiment comes from: an object, a config file, or the name of a config that is installed with the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from configs.errors import ConfigError
from configs.experiment import Experiment
from configs.load import load
from configs.parsing.problems import fields_of, problems_of

DEFAULT = Path("configs/demo.yaml")
"""The config of every command that is given none: a file of the checkout, or else the installed one of that name."""
PACKAGED = Path(__file__).parent
DEMO_CHECKPOINT = Path("stage1_extract/demo/checkpoint")
EMBEDDED_CHECKPOINTS = {
    "demo": DEMO_CHECKPOINT,
    "scenes_hard": Path("stage1_extract/demo/hard/checkpoint"),
    "scenes_hard_deep": Path("stage1_extract/demo/hard/deep/checkpoint"),
}
"""Checkpoints in the checkout and in the package, by the names that any config may call them by."""


def load_experiment(
    config: Experiment | Path | str = DEFAULT, pruners: Mapping[str, type] | None = None, **settings: Any
) -> Experiment:
    """Load an experiment, with settings laid over it.

    Args:
        config: A config file, the name of a packaged config such as `demo`, or an experiment that is loaded already.
        pruners: Pruner classes by name, with which the parameters of `prune.methods` are checked too.
        **settings: Values of the config's fields; `prune__budgets=[64, 32]` is the field `budgets` of the section `prune`.

    Raises:
        ConfigError: (exit 2) Names every problem of the file and of the settings.

    Examples:
        >>> load_experiment("demo", prune__budgets=[32], run_dir="runs/mine").prune.budgets
        (32,)

    """
    given = {key.replace("__", ".", 1): value for key, value in settings.items()}
    if isinstance(config, Experiment):
        return _with_embedded_checkpoint(_changed(config, given))
    return read_experiment(Path(config), given, pruners)


def read_experiment(
    config: Path, overrides: Mapping[str, Any], pruners: Mapping[str, type] | None = None
) -> Experiment:
    """Read a config file, or a packaged config by its name, as `configs.load.load` does."""
    return _with_embedded_checkpoint(load(find_config(config), overrides, pruners))


def find_config(path: Path) -> Path:
    """Return the file that a config's path or name means: `demo` is the packaged config unless a file has that name."""
    named = path.name if path == DEFAULT else f"{path.name}.yaml"
    packaged = PACKAGED / named
    is_name = path.name == str(path) and path.suffix not in {".yaml", ".yml"}
    if not path.is_file() and (is_name or path == DEFAULT) and packaged.is_file():
        return packaged
    return path


def packaged_configs() -> list[str]:
    """Return the names of the configs that are installed with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.yaml"))


def _with_embedded_checkpoint(experiment: Experiment) -> Experiment:
    """Find an embedded checkpoint by its name or its path: below the current folder first, then in the package."""
    checkpoint = Path(experiment.model.checkpoint)
    embedded = EMBEDDED_CHECKPOINTS.get(str(checkpoint), checkpoint)
    if embedded not in EMBEDDED_CHECKPOINTS.values() or checkpoint.exists():
        return experiment
    model = experiment.model.model_copy(update={"checkpoint": str(PACKAGED.parent / embedded)})
    return experiment.model_copy(update={"model": model})


def _changed(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Lay settings over an experiment, and validate all of it again; ConfigError (exit 2) names every problem."""
    content: dict[str, Any] = experiment.model_dump(mode="json")
    for key, value in settings.items():
        section, _, field = key.partition(".")
        content[section] = {**content[section], field: value} if field and section in content else value
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        problems = problems_of(error, content, fields_of(Experiment))
        raise ConfigError("; ".join(map(str, problems))) from None
