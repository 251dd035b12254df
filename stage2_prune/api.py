"""Stage 2 from Python: what the commands `train`, `eval`, `sweep`, `parity`, `compare` and `show` do, without printing tables."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from configs import plugin
from configs.experiment import Experiment
from configs.find_config import DEFAULT, load_experiment
from configs.processes.workers import require_guard
from stage2_prune import pruners
from stage2_prune.analysis import show
from stage2_prune.compare import run as comparison
from stage2_prune.evaluation import evaluate
from stage2_prune.parity import run as parity
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.sweep import run as sweeping
from stage2_prune.training import train


def run_training(
    config: Experiment | Path | str = DEFAULT, *, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    """Train the pruner of `train.pruner`, or resume its training; return what `pruner.json` records about the training.

    Args:
        config: An experiment, a config file, or the name of a packaged config.
        overwrite: Whether to replace a training with other settings.
        **settings: Values of the config's fields, such as `train__epochs=4`.

    Raises:
        EncodeOnceError: As the command, with the command's exit code in `exit_code`.

    """
    return train.run(_experiment(config, settings), overwrite)


def run_evaluation(
    config: Experiment | Path | str = DEFAULT, *, overwrite: bool = False, **settings: Any
) -> dict[str, Any]:
    """Score every configured pruner at every budget, and return the content of `summary.json`; arguments as `run_training`."""
    return evaluate.run(_experiment(config, settings), overwrite)


def run_sweep(config: Experiment | Path | str = DEFAULT, *, overwrite: bool = False, **settings: Any) -> dict[str, Any]:
    """Score many methods over all that the config crosses, and return the sweep's `summary.json`; arguments as `run_training`."""
    return sweeping.run(_experiment(config, settings), overwrite)


def run_parity(
    config: Experiment | Path | str = DEFAULT, *, limit: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Compare four ways to the answer, print the command's table, and return the content of `parity.json`.

    Args:
        config: An experiment, a config file, or the name of a packaged config.
        limit: Questions to ask, at most; None asks the whole split.
        **settings: Values of the config's fields.

    Returns:
        `identical` is true if every feature, logit and token has the same bits, null if a mode could not run.

    """
    experiment = _experiment(config, settings)
    parity.run(experiment, limit, as_json_text=False)
    return json.loads((experiment.run_dir / "parity.json").read_text(encoding="utf-8"))


def compare_runs(
    runs: Sequence[Path | str],
    *,
    only: Sequence[str] = (),
    against: str | None = None,
    factors: Collection[str] = (),
) -> dict[str, Any]:
    """Compare saved predictions question by question.

    Args:
        runs: Run folders, or files of predictions.
        only: Patterns of the names of results to compare, such as `*-32-*`.
        against: Name of a result: only pairs with it are compared. None compares all pairs.
        factors: What may differ beside the method, such as `positions`.

    """
    return comparison.run([Path(run) for run in runs], only, against, factors)


def show_images(
    images: Sequence[str],
    config: Experiment | Path | str = DEFAULT,
    *,
    methods: Sequence[str] | None = None,
    keep: int | None = None,
    question: str | None = None,
    dpi: int = 200,
    out: Path | str | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> Path:
    """Draw what methods keep of images, side by side, and return the PNG file; no model is run.

    Args:
        images: Names of images, as the questions name them.
        config: An experiment, a config file, or the name of a packaged config.
        methods: Labels of the config, or names or paths of methods; None draws all of the config's methods that select.
        keep: Visual tokens per image; None takes the middle budget of the config.
        question: A question to ask about every image; None takes the config's first question about each image.
        dpi: Pixels per inch; a picture is about 1.7 inches wide.
        out: The file to write; None writes a file into `<run_dir>/selection`.
        overwrite: Whether to replace a file that is there.
        **settings: Values of the config's fields.

    Raises:
        EncodeOnceError: As the command `show`, with the command's exit code in `exit_code`.

    """
    chosen = None if methods is None else tuple(methods)
    request = show.PictureRequest(tuple(images), methods=chosen, keep=keep, question=question, dpi=dpi)
    return show.run(_experiment(config, settings), request, None if out is None else Path(out), overwrite).path


def _experiment(config: Experiment | Path | str, settings: dict[str, Any]) -> Experiment:
    require_guard()
    return load_experiment(config, plugin.find_all(pruners, Pruner), **settings)
