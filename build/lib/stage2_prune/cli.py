"""The commands of stage 2; torch and transformers are imported by the commands, not by `--help`."""

import json
from pathlib import Path
from typing import Any

import click

from configs.experiment import Experiment
from configs.flags import Commands, experiment_from, experiment_options
from stage2_prune.errors import NotTrained
from store.checkpoint.versions import note_untested

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the results of other settings.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
foreign_option = click.option(
    "--allow-foreign-device",
    is_flag=True,
    help="Accept a store from another device whose projections are close but not the same bits.",
)


@click.group(cls=Commands)
def group() -> None:
    """Stage 2: prune visual tokens from the store and let the language model answer; no vision tower."""
    note_untested()


@group.command("eval")
@experiment_options("eval", "model", "data", "store", "prune")
@overwrite_option
@foreign_option
@json_option
def evaluate(config_path: Path, overwrite: bool, allow_foreign_device: bool, as_json: bool, **flags: Any) -> None:
    """Score every configured pruner at every budget; interrupted runs are resumed."""
    experiment = _experiment(config_path, flags)
    from stage2_prune.evaluation import evaluate, report

    summary = evaluate.run(experiment, overwrite, allow_foreign_device)
    click.echo(json.dumps(summary) if as_json else report.table(summary), nl=as_json)
    click.echo(f"written to {experiment.run_dir / 'eval'}", err=True)


@group.command()
@experiment_options("sweep", "eval", "model", "data", "store", "prune")
@overwrite_option
@foreign_option
@json_option
def sweep(config_path: Path, overwrite: bool, allow_foreign_device: bool, as_json: bool, **flags: Any) -> None:
    """Score many methods over budgets, positions and what else the config crosses; interrupted runs are resumed.

    Writes tidy CSV, a table and pictures; what cannot be had is listed with its reason.
    """
    experiment = _experiment(config_path, flags)
    from stage2_prune.sweep import report as sweep_report
    from stage2_prune.sweep import run as sweep

    summary = sweep.run(experiment, overwrite, allow_foreign_device)
    click.echo(json.dumps(summary) if as_json else sweep_report.table(summary), nl=as_json)
    click.echo(f"written to {experiment.run_dir / 'sweep'}", err=True)


@group.command()
@experiment_options("train", "model", "data", "store", "prune")
@overwrite_option
@json_option
def train(config_path: Path, overwrite: bool, as_json: bool, **flags: Any) -> None:
    """Train one pruner through the frozen language model; interrupted runs are resumed."""
    experiment = _experiment(config_path, flags)
    from stage2_prune.training import train

    result = train.run(experiment, overwrite)
    if as_json:
        click.echo(json.dumps(result))


@group.command()
@experiment_options("eval", "model", "data", "store", "prune")
@click.option("--keep", type=click.IntRange(min=1), required=True, help="Mean visual tokens that enter a layer.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Questions to fit on.")
def calibrate(config_path: Path, keep: int, limit: int, **flags: Any) -> None:
    """Fit fit_prune's `deletes` to the configured model on training questions; prints the line for a config."""
    experiment = _experiment(config_path, flags)
    from stage2_prune.training import calibrate

    click.echo(f"deletes: {calibrate.run(experiment, keep, limit)}")


@group.command()
@experiment_options("eval", "model", "data", "store", "prune", "train")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Questions, at most; default: the whole split.")
@json_option
def parity(config_path: Path, limit: int | None, as_json: bool, **flags: Any) -> int:
    """Prove that the store answers as the full model does: four modes, bit for bit."""
    experiment = _experiment(config_path, flags)
    from stage2_prune.parity import run as parity

    return parity.run(experiment, limit, as_json)


@group.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="GLOB", help="Results whose names match, such as '*-32-*'; repeatable.")
@click.option("--against", metavar="NAME", help="Pairs with this result only; default: all pairs.")
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=click.Choice(["model", "store", "prompt", "positions", "dtype", "answer-length"]),
    help="What else may differ, because it is what you compare; repeatable.",
)
@click.option("--resamples", type=click.IntRange(min=1), help="Of the bootstrap; default: as the results' evaluation.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the bootstrap; default: as the results' evaluation.")
@json_option
def compare(results: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Compare saved predictions pairwise: RESULTS are run folders or prediction files of eval.

    Differences with paired intervals, flips in both directions, exact McNemar tests with Holm's correction.
    """
    from stage2_prune.compare import report as compare_report
    from stage2_prune.compare import run as compare

    found = compare.run(results, **options)
    click.echo(json.dumps(found) if as_json else compare_report.as_text(found), nl=as_json)


@group.command()
@experiment_options("eval", "model", "data", "store", "prune", "sweep")
@click.option("--sweep", is_flag=True, help="The methods of `sweep`, by default all there are, not prune.methods.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Questions, at most; default: the whole split.")
@overwrite_option
@json_option
def analyse(
    config_path: Path, sweep: bool, limit: int | None, overwrite: bool, as_json: bool, **flags: Any
) -> None:  # fmt: skip
    """Say what pruners keep: likeness to each other, coverage, duplicates, padding, the object that is asked about.

    Reads the store and, for methods that read the question, text embeddings; no language model is run.
    """
    experiment = _experiment(config_path, flags)
    from stage2_prune.analysis import analyse
    from stage2_prune.analysis import report as selection_report

    found = analyse.run(experiment, sweep, limit, overwrite)
    click.echo(json.dumps(found) if as_json else selection_report.table(found), nl=as_json)
    click.echo(f"written to {experiment.run_dir / 'selection'}", err=True)


@group.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@experiment_options("model", "data", "store", "prune")
@click.option("--methods", metavar="A,B,…", help="Pruners; default: the config's that drop before the language model.")
@click.option(
    "--keep", type=click.IntRange(min=1), help="Visual tokens per image; default: the middle of prune.budgets."
)
@click.option("--question", help="Asked of every image; default: the first of the config's questions about it.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="PNG; default: in <run_dir>/selection.")
@click.option("--columns", type=click.IntRange(min=2), default=7, show_default=True, help="Pictures side by side.")
@click.option(
    "--dpi", type=click.IntRange(min=50), default=200, show_default=True, help="A picture is 1.7 inches wide."
)
@overwrite_option
def show(
    config_path: Path, images: tuple[str, ...], methods: str | None, keep: int | None, question: str | None,
    out: Path | None, columns: int, dpi: int, overwrite: bool, **flags: Any,
) -> None:  # fmt: skip
    """Draw what pruners keep of images, side by side: IMAGE is a name as in the questions.

    The picture is what the image processor leaves of the file; no model is run.
    """
    experiment = _experiment(config_path, flags)
    from stage2_prune.analysis import show

    named = None if methods is None else tuple(methods.split(","))
    wanted = show.Wanted(images, named, keep, question, columns, dpi)
    shown = show.run(experiment, wanted, out, overwrite)
    click.echo(shown.path)
    if shown.untrained:
        raise NotTrained("; ".join(shown.untrained))
    for reason in shown.left_out:
        click.echo(reason, err=True)


@group.command("pruners")
@json_option
def list_pruners(as_json: bool) -> None:
    """List the pruning methods: parameters with defaults, arrays they need, where and how they budget."""
    from stage2_prune.evaluation import report

    rows = report.describe_pruners()
    click.echo(json.dumps(rows) if as_json else report.pruner_table(rows), nl=as_json)


def _experiment(config_path: Path, flags: dict[str, Any]) -> Experiment:
    from configs import plugin
    from stage2_prune import pruners
    from stage2_prune.pruning.pruner import Pruner

    return experiment_from(config_path, flags, plugin.find_all(pruners, Pruner))
