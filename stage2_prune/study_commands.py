"""Define the commands that study pruners: how far they are from the best possible, and what a trained one has learned."""

import json
from pathlib import Path
from typing import Any

import click

from configs.flags import experiment_options
from stage2_prune.experiments import answering_experiment
from stage2_prune.pruner_commands import json_option

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace results that were made with other settings.")
foreign_option = click.option(
    "--allow-foreign-device",
    is_flag=True,
    help="Accept a store from another device, if its projections are close although not the same bits.",
)


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
