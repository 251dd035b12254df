"""Define the command that computes the signals of the unpruned language model, for trainings that distil it."""

import json
from pathlib import Path
from typing import Any

import click

from configs.flags import experiment_options
from stage2_prune.experiments import answering_experiment
from stage2_prune.pruner_commands import json_option

foreign_option = click.option(
    "--allow-foreign-device",
    is_flag=True,
    help="Accept a store from another device, if its projections are close although not the same bits.",
)


@click.command()
@experiment_options("teach", "model", "data", "store")
@click.option("--dry-run", is_flag=True, help="Print questions, answer tokens and MB; load nothing.")
@click.option("--verify", is_flag=True, help="Check every byte and every span of the signals instead; load nothing.")
@click.option("--overwrite", is_flag=True, help="Replace signals of another language model or of other features.")
@foreign_option
@json_option
def teach(
    config_path: Path, dry_run: bool, verify: bool, overwrite: bool, allow_foreign_device: bool, as_json: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Compute once what the unpruned language model answers.

    The command asks every question of the training and validation splits. Trainings with `train.teacher: cached` then need no
    second forward pass to distil. An interrupted run is resumed, and further questions are added. Exit code 4 of --verify means
    that something is damaged.
    """
    experiment = answering_experiment(config_path, flags)
    if verify:
        from stage2_prune.teaching.verify import findings

        found = [str(finding) for finding in findings(experiment.teacher_path)]
        click.echo(json.dumps({"findings": found}) if as_json else "\n".join(found or ["nothing is damaged"]))
        return 4 if found else 0
    from stage2_prune.teaching import teach as teaching

    result = (
        teaching.price(experiment, overwrite) if dry_run else teaching.run(experiment, overwrite, allow_foreign_device)
    )
    click.echo(json.dumps(result) if as_json else teaching.as_text(result))
    return 0
