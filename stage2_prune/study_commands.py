"""Define the commands that study pruners: how far they are from the best possible, and what a trained one has learned."""

import json
from pathlib import Path
from typing import Any

import click

from configs.flags import experiment_options
from stage2_prune.experiments import answering_experiment, pruning_experiment
from stage2_prune.pruner_commands import json_option
from stage2_prune.teach_command import foreign_option

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that were made with other settings.")


@click.command()
@experiment_options("oracle", "eval", "model", "data", "store", "prune")
@overwrite_option
@foreign_option
@json_option
def oracle(config_path: Path, overwrite: bool, allow_foreign_device: bool, as_json: bool, **flags: Any) -> None:
    """Search for the patches that the model answers best from.

    The search is greedy, so its results are lower bounds of what a selection can reach at each budget. An interrupted search is
    resumed. The table shows how much of the gap between random patches and the search each method of this run closes.
    """
    experiment = answering_experiment(config_path, flags)
    from stage2_prune.oracle import run as oracle

    summary = oracle.run(experiment, overwrite, allow_foreign_device)
    click.echo(json.dumps(summary) if as_json else oracle.table(experiment, summary), nl=as_json)
    click.echo(f"written to {experiment.oracle_dir}", err=True)


@click.command()
@experiment_options("eval", "model", "data", "store", "prune", "train")
@click.option("--keep", type=click.IntRange(min=1), default=32, show_default=True, help="Visual tokens per image.")
@click.option("--against", default="cls_attention", show_default=True, help="The method to read it beside.")
@click.option("--images", type=click.IntRange(min=1), default=6, show_default=True, help="Number of images to draw.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=None, help="At most this many questions; default: the whole split."
)
@json_option
def read(
    config_path: Path, keep: int, against: str, images: int, limit: int | None, as_json: bool, **flags: Any
) -> None:  # fmt: skip
    """Read the trained method that train.pruner names.

    The command draws its scores over images, counts what it keeps that another method drops, and says from saved predictions
    which kinds of question gain and lose, and how the method does at budgets and on kinds that it was not trained on.
    """
    experiment = pruning_experiment(config_path, flags)
    from stage2_prune.insight import read, report

    reading = read.run(experiment, keep, against, images, limit)
    click.echo(json.dumps(reading) if as_json else report.table(reading), nl=as_json)
    click.echo(f"written to {read.folder_of(experiment)}", err=True)
