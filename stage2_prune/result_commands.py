"""Define the commands that compare saved results: `compare` and `claim`."""

import json
from pathlib import Path
from typing import Any

import click

from configs.flags import experiment_from, experiment_options
from stage2_prune.pruner_commands import json_option


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Take only results whose names match, such as '*-32-*'; repeatable."
)
@click.option("--against", metavar="NAME", help="Compare every result with this result only; default: all pairs.")
@click.option(
    "--factor",
    "factors",
    multiple=True,
    type=click.Choice(["model", "store", "prompt", "positions", "dtype", "answer-length"]),
    help="A factor that may differ between results because you compare it; repeatable.",
)
@click.option(
    "--resamples",
    type=click.IntRange(min=1),
    help="Number of resamples of the bootstrap; default: as in the results' evaluation.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of the bootstrap; default: the seed of the results' evaluation."
)
@json_option
def compare(results: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Compare the saved answers of two or more results.

    RESULTS are run folders or prediction files of eval. For every pair of them the command prints the difference with a
    paired interval, flips in both directions, and exact McNemar tests with Holm's correction.
    """
    from stage2_prune.compare import report as compare_report
    from stage2_prune.compare import run as compare

    comparison = compare.run(results, **options)
    click.echo(json.dumps(comparison) if as_json else compare_report.as_text(comparison), nl=as_json)


@click.command()
@experiment_options("claims", "model", "data", "store", "eval")
@json_option
def claim(config_path: Path, as_json: bool, **flags: Any) -> None:
    """Test what the config's `claims` say of trained methods.

    The sweep over the validation split chooses the methods, and the sweep over the test split compares them.
    """
    experiment = experiment_from(config_path, flags)
    from stage2_prune.compare import claims

    outcome = claims.run(experiment)
    claims.write(experiment, outcome)
    click.echo(json.dumps(outcome) if as_json else claims.as_text(outcome), nl=as_json)
    click.echo(f"written to {claims.file_of(experiment)}", err=True)
