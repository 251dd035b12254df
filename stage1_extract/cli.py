"""The commands of stage 1. Each command imports torch and transformers itself, so that `--help` needs neither."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from configs.cli import STORE
from configs.counted import counted
from configs.errors import ConfigError
from configs.experiment import Experiment, StoreLocation
from configs.flags import Commands, experiment_from, experiment_options
from configs.plugin import is_path
from store.checkpoint.presence import require_checkpoint
from store.checkpoint.versions import note_untested

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(cls=Commands)
@click.pass_context
def group(context: click.Context) -> None:
    """Stage 1: encode every image once into a feature store; the only stage with a vision tower."""
    if context.invoked_subcommand != reference.name:  # `stage2_prune parity` starts `reference`, and has noted it
        note_untested()


@group.command()
@experiment_options("extract", "model", "data", "store")
@click.option("--dry-run", is_flag=True, help="Print images, shards, GB and free space; load nothing.")
@click.option(
    "--measure", is_flag=True, help="With --dry-run: encode a sample, and estimate minutes and device memory."
)
@click.option("--overwrite", is_flag=True, help="Replace the store, if it exists.")
@click.option("--append", is_flag=True, help="Add images and arrays that the store was not planned for.")
@click.option("--retry-failed", is_flag=True, help="Try again the images that could not be encoded.")
@json_option
def extract(
    config_path: Path, dry_run: bool, measure: bool, overwrite: bool, append: bool, retry_failed: bool, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Encode the images that the store lacks."""
    if measure and not dry_run:
        raise click.UsageError("expected --measure with --dry-run, got it alone: add --dry-run")
    if overwrite and append:
        raise click.UsageError(
            "expected --overwrite or --append, got both: one replaces the store, the other adds to it"
        )
    experiment = experiment_from(config_path, flags)
    require_checkpoint(experiment.model.checkpoint, experiment.model.revision)
    from stage1_extract import dry_run as dry
    from stage1_extract import extract as stage
    from stage1_extract.work import price
    from store.layout.ids import printable

    if dry_run:
        costs = dry.dry_run(experiment, overwrite, append or retry_failed, measure)
        click.echo(json.dumps(costs) if as_json else price.as_text(costs, experiment.store_path))
        return
    done = stage.extract(experiment, overwrite, append, retry_failed)
    if as_json:
        click.echo(json.dumps(done))
        return
    click.echo(
        f"{done['store']}: {_asked(done)}; the tower saw {done['tower_images']:,} now, "
        f"{done['bytes_written'] / 1e9:.3f} GB written in {done['seconds']:.0f} s"
    )
    for names, reason in done["asked"]["failures"].items():
        click.echo(f"  left out: {printable(names)} ({reason})")


def _asked(done: dict[str, Any]) -> str:
    """Say what the store has of the images that were asked for, and how many it holds in all where it holds others too."""
    asked, names = done["asked"], done["images"]
    distinct = f" ({asked['images']:,} distinct)" if asked["images"] != names else ""
    left_out = len(asked["failures"])
    lacking = {"left out": left_out, "not encoded yet": asked["images"] - asked["stored"] - left_out}
    parts = [f"{asked['stored']:,} stored", *(f"{count} {what}" for what, count in lacking.items() if count)]
    state = "all stored" if len(parts) == 1 else ", ".join(parts)
    others = "" if done["stored"] == asked["stored"] else f"; the store holds {done['stored']:,}"
    return f"{counted(names, 'image')} asked for{distinct}, {state}{others}"


@group.command()
@click.argument("store", type=STORE, required=False)
@experiment_options("model", "data", "extract")
@click.option("--live", type=click.IntRange(min=1), help="Encode this many images again and compare every bit.")
@click.option("--sources", is_flag=True, help="Compare every image file with the one that was encoded.")
@json_option
@click.pass_context
def verify(
    context: click.Context, store: StoreLocation | None, config_path: Path, live: int | None, sources: bool, as_json: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Compare the features in STORE with its images.

    STORE is the config's by default. Exit code 4 means that they differ. Without options, --live 4 applies.

    Without --config, checkpoint and images are those of the config that was saved beside STORE. Whether the store's own
    bytes are intact is checked by `python -m store verify`.
    """
    experiment = _of_store(context, store, config_path, flags)
    from stage1_extract.checking import verify as stage

    asked = 4 if live is None and not sources else live
    result = stage.encode_again(experiment, asked) if asked else {"unequal": [], "changed": [], "other_environment": []}
    changed = [vars(image) for image in stage.changed_sources(experiment)] if sources else result["changed"]
    result |= {"changed": changed}
    click.echo(json.dumps(result) if as_json else stage.as_text(result, experiment.store_location))
    return 4 if result["unequal"] or changed else 0


@group.command()
@click.argument("batch_folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def reference(batch_folder: Path) -> None:
    """Answer the questions of `parity` with the full model.

    `python -m stage2_prune parity` starts this command, the only one that loads a full model.
    """
    from stage1_extract.checking import reference

    reference.run(batch_folder)


@group.command()
@click.argument("store", type=STORE)
@experiment_options("model", "data", "extract")
@click.option("--sample", type=click.IntRange(min=1), default=8, show_default=True, help="Images to encode again.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed that draws these images, spread over the store."
)
@click.option(
    "--whole",
    is_flag=True,
    help="Run the checks that need no tower on every row instead of 64; the price is printed first.",
)
@click.option(
    "--tries",
    type=click.IntRange(min=0),
    help="Most forwards of the tower to spend on changed pictures, if nothing cheaper explains the store; default: as many as "
    "take about three minutes.",
)
@json_option
@click.pass_context
def diagnose(
    context: click.Context, store: StoreLocation, config_path: Path, sample: int, seed: int, whole: bool, tries: int | None,
    as_json: bool, **flags: Any,
) -> int:  # fmt: skip
    """Find out what is wrong with the features in STORE.

    Encodes some images again and names the causes of every difference: layer, CLS row, picture, image processor, projector,
    dtype, scale, order of patches, other images' features, empty rows.

    Without --config, the checkpoint and the images are those of the config that was saved beside STORE.
    """
    experiment = _of_store(context, store, config_path, flags)
    from stage1_extract.diagnose import run

    return run.run(experiment, sample, as_json, seed, whole, tries)


def _require_store(folder: Path) -> None:
    """Raise StoreMissing (exit 5) for a folder that is no store; its message asks whether a run folder's store was meant."""
    from store.layout.plan import read_plan

    read_plan(folder)


def _require_batch_of(store: StoreLocation, experiment: Experiment) -> None:
    """Refuse (ConfigError, exit 2) a number of images per call that is typed and is not what the store records."""
    from store.layout.tower_call import call_of
    from store.reading.reader import FeatureStore

    asked, recorded = experiment.extract.tower_batch, call_of(FeatureStore.open(store, believe_plan=True).plan).images
    if asked not in ("auto", recorded):
        raise ConfigError(
            f"--tower-batch: expected {recorded}, as {store} records, got {asked}: leave it out, as a store is "
            "compared with calls of the shape that made it"
        )


def _of_store(
    context: click.Context, store: StoreLocation | None, config_path: Path, flags: dict[str, Any]
) -> Experiment:
    """Return the experiment of the config that is named, or else of the config that was saved beside the store."""
    if store is None:
        return experiment_from(config_path, flags)
    beside = context.get_parameter_source("config_path") is ParameterSource.DEFAULT
    if beside:
        config_path = Path(store) / "config.yaml"
        if not config_path.is_file():
            if isinstance(store, Path):
                _require_store(store)
            raise ConfigError(
                f"expected the config.yaml that {store} was made with in that folder, there is none: name a config with "
                "--config"
            )
    experiment = experiment_from(config_path, flags | {"store__path": str(store)})
    if flags["extract__tower_batch"] is not None:
        _require_batch_of(store, experiment)
    named = {"model__vision_family": experiment.model.vision_family, "model__tower": experiment.model.tower}
    code = [name for flag, name in named.items() if flags[flag] is None and name and is_path(name)]
    if beside and code:  # a store may come from someone else
        raise ConfigError(
            f"expected to run no code that a store's config names, {config_path} names {', '.join(code)}: read that file, and "
            f"run it with --config {config_path}"
        )
    return experiment
