"""Define the commands of stage 2. The commands import torch and transformers; `--help` does not."""

import json
from pathlib import Path
from typing import Any

import click

from configs.flags import Commands, experiment_options
from stage2_prune.errors import NotTrained
from stage2_prune.experiments import answering_experiment, pruning_experiment
from stage2_prune.pruner_commands import check_pruner, json_option, list_pruners
from stage2_prune.result_commands import claim, compare
from stage2_prune.sharing_commands import card, pull, push
from stage2_prune.study_commands import oracle, overwrite_option, read
from stage2_prune.teach_command import foreign_option, teach
from store.checkpoint.versions import note_untested


@click.group(cls=Commands)
def group() -> None:
    """Stage 2: prune visual tokens from the store and let the language model answer, without a vision tower."""
    note_untested()


@group.command("eval")
@experiment_options("eval", "model", "data", "store", "prune")
@overwrite_option
@foreign_option
@json_option
def evaluate(config_path: Path, overwrite: bool, allow_foreign_device: bool, as_json: bool, **flags: Any) -> None:
    """Score every configured pruner at every budget. An interrupted run is resumed.

    Where `oracle` has searched in the same run folder, the command also shows how much of the gap to it each method closes.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.compare import gap, gap_report
    from stage2_prune.evaluation import evaluate, report

    summary = evaluate.run(experiment, overwrite, allow_foreign_device)
    click.echo(json.dumps(summary) if as_json else report.table(summary), nl=as_json)
    if not as_json and (placed := gap_report.table(gap.beside(experiment))):
        click.echo("\n" + placed, nl=False)
    click.echo(f"written to {experiment.run_dir / 'eval'}", err=True)


@group.command()
@experiment_options("sweep", "eval", "model", "data", "store", "prune")
@overwrite_option
@foreign_option
@json_option
def sweep(config_path: Path, overwrite: bool, allow_foreign_device: bool, as_json: bool, **flags: Any) -> None:
    """Score many methods at many budgets and other settings.

    The config says what varies. An interrupted run is resumed. The command writes tidy CSV, a table and pictures, and lists
    methods and budgets that cannot run, with the reason.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.sweep import report as sweep_report
    from stage2_prune.sweep import run as sweep

    summary = sweep.run(experiment, overwrite, allow_foreign_device)
    click.echo(json.dumps(summary) if as_json else sweep_report.table(summary), nl=as_json)
    click.echo(f"written to {experiment.sweep_dir}", err=True)


@group.command()
@experiment_options("train", "model", "data", "store", "prune")
@overwrite_option
@json_option
def train(config_path: Path, overwrite: bool, as_json: bool, **flags: Any) -> None:
    """Train one pruner; the language model stays as it is.

    An interrupted training is resumed.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.training import ranks, train

    result = train.run(experiment, overwrite)
    if as_json and ranks.prints():
        click.echo(json.dumps(result))


@group.command()
@experiment_options("eval", "model", "data", "store", "prune")
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    required=True,
    help="Visual tokens that enter a layer, on average over layers.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Number of questions to fit on."
)
def calibrate(config_path: Path, keep: int, limit: int, **flags: Any) -> None:
    """Fit the method fit_prune to the configured model.

    The command fits on training questions, and prints the line `deletes: …` for a config.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.training.calibration import calibrate

    click.echo(f"deletes: {calibrate.run(experiment, keep, limit)}")


@group.command()
@experiment_options("eval", "model", "data", "store", "prune", "train")
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="At most this many questions; default: the whole split."
)
@json_option
def parity(config_path: Path, limit: int | None, as_json: bool, **flags: Any) -> int:
    """Prove that the store gives the full model's answers.

    The command compares four ways to the answers of eval.split, bit for bit, and writes parity.json into the run folder. Exit
    code 4 means that two ways differ, 3 that one of the ways could not be tried.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.parity import run as parity

    return parity.run(experiment, limit, as_json)


@group.command()
@experiment_options("eval", "model", "data", "store", "prune", "sweep")
@click.option(
    "--sweep", is_flag=True, help="Take the methods of `sweep`, by default all methods, instead of prune.methods."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="At most this many questions; default: the whole split."
)
@overwrite_option
@json_option
def analyse(
    config_path: Path, sweep: bool, limit: int | None, overwrite: bool, as_json: bool, **flags: Any
) -> None:  # fmt: skip
    """Measure which parts of images pruners keep.

    The command measures how alike the methods' choices are, coverage, duplicates, padding, and how much is kept of the object
    that a question is about. Only the store is read and, for methods that read the question, text embeddings. No language model
    is run.
    """
    experiment = pruning_experiment(config_path, flags)
    from stage2_prune.analysis import analyse
    from stage2_prune.analysis import report as selection_report

    analysis = analyse.run(experiment, sweep, limit, overwrite)
    click.echo(json.dumps(analysis) if as_json else selection_report.table(analysis), nl=as_json)
    click.echo(f"written to {analyse.folder_of(experiment, sweep)}", err=True)


@group.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@experiment_options("model", "data", "store", "prune")
@click.option(
    "--methods",
    metavar="A,B,…",
    help="Pruners to draw; default: the config's pruners that drop before the language model.",
)
@click.option(
    "--keep", type=click.IntRange(min=1), help="Visual tokens per image; default: the middle of prune.budgets."
)
@click.option("--question", help="The question about every image; default: the config's first question about it.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Picture (.png) to write; default: in <run_dir>/selection.",
)
@click.option(
    "--columns", type=click.IntRange(min=2), default=7, show_default=True, help="Number of pictures side by side."
)
@click.option(
    "--dpi",
    type=click.IntRange(min=50),
    default=200,
    show_default=True,
    help="Pixels per inch; a picture is 1.7 inches wide.",
)
@overwrite_option
def show(
    config_path: Path, images: tuple[str, ...], methods: str | None, keep: int | None, question: str | None,
    out: Path | None, columns: int, dpi: int, overwrite: bool, **flags: Any,
) -> None:  # fmt: skip
    """Draw which parts of images pruners keep, side by side.

    IMAGE is a name as in the questions. The pictures show what the image processor leaves of the files. No model is run.
    """
    experiment = pruning_experiment(config_path, flags)
    from stage2_prune.analysis import show

    named = None if methods is None else tuple(methods.split(","))
    wanted = show.PictureRequest(images, named, keep, question, columns, dpi)
    shown = show.run(experiment, wanted, out, overwrite)
    click.echo(shown.path)
    if shown.untrained:
        raise NotTrained("; ".join(shown.untrained))
    for reason in shown.left_out:
        click.echo(reason, err=True)


for command in (teach, list_pruners, check_pruner, oracle, read, compare, claim, card, push, pull):
    group.add_command(command)
