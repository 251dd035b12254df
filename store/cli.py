"""The command line `python -m store`: inspect, check, mend and copy a store.

`--help` and `inspect` import neither torch nor transformers, so they answer quickly.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from configs.cli import STORE
from configs.counted import counted
from configs.experiment import StoreLocation, local_folder
from configs.flags import Commands, experiment_from, experiment_options
from configs.processes.children import module_process


@click.group(cls=Commands)
def group() -> None:
    """Look into a store of features, check, mend and copy it."""


def _location(path: StoreLocation | None, config_path: Path, flags: dict[str, Any]) -> StoreLocation:
    return path or experiment_from(config_path, flags).store_location


def _folder(path: StoreLocation | None, config_path: Path, flags: dict[str, Any]) -> Path:
    return local_folder(_location(path, config_path, flags))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(path: StoreLocation | None, config_path: Path, as_json: bool, **flags: Any) -> None:
    """Print what a store holds, and what it still lacks.

    Lists arrays, fingerprints, committed and missing shards and failures of PATH (default: the config's store).
    """
    from store.care.inspect import as_text, report

    contents = report(_location(path, config_path, flags))
    click.echo(json.dumps(contents) if as_json else as_text(contents))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--quick", is_flag=True, help="Check sizes, metadata and the log only, in seconds; read no rows.")
@click.option("--sources", is_flag=True, help="Also compare the image files with what was encoded.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def verify(
    context: click.Context, path: StoreLocation | None, config_path: Path, quick: bool, sources: bool, as_json: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Check that the files of a store are undamaged.

    Reads every byte of PATH (default: the config's store). Exit code 4 means that something is damaged.
    """
    from dataclasses import asdict

    from store.care.status import missing_shards, shard_counts
    from store.care.verify import verify

    location = _location(path, config_path, flags)
    findings = verify(location, quick)
    typed = context.get_parameter_source("config_path") is not ParameterSource.DEFAULT
    changed = _changed_sources([str(location), *(["--config", str(config_path)] * typed)]) if sources else []
    counts = shard_counts(location)
    if as_json:
        report = {"findings": [asdict(finding) for finding in findings], "changed_sources": changed}
        click.echo(json.dumps(report | counts))
    else:
        for finding in findings:
            click.echo(str(finding))
        for image in changed:
            click.echo(f"image differs from what was encoded: {image}")
        if changed:
            click.echo("bring the files back, or let `extract --append` encode what changed as it is now")
        if not findings and not changed:
            click.echo(f"nothing is damaged{missing_shards(counts)}")
    return 4 if findings or changed else 0


def _changed_sources(arguments: list[str]) -> list[str]:
    """List the images whose files have changed, with the reasons.

    Stage 1 reads images, and the store may not import a stage, so a process of its own does this.
    """
    command, environment = module_process("stage1_extract", "verify", *arguments, "--sources", "--json")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 4):
        raise SystemExit(done.returncode)
    return [f"{image['name']} ({image['reason']})" for image in json.loads(done.stdout)["changed"]]


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(path: StoreLocation | None, config_path: Path, as_json: bool, **flags: Any) -> None:
    """Print how far a run is, also while it runs.

    Counts what is extracted into PATH (a store or a run folder; default: the config's), and what is evaluated, swept and
    trained in the run folder.
    """
    from store.care.status import as_text, status_of_run

    experiment = None if path else experiment_from(config_path, flags)
    store, run = (path, None) if experiment is None else (experiment.store_location, experiment.run_dir)
    progress = status_of_run(store, run)
    click.echo(json.dumps(progress) if as_json else as_text(progress))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--quick", is_flag=True, help="Look at sizes, metadata and the log only.")
def repair(path: StoreLocation | None, config_path: Path, quick: bool, **flags: Any) -> int:
    """Mend a damaged store.

    Writes damaged files of PATH (default: the config's store) again that follow from the rest of the store, and withdraws
    exactly the damaged shards, which `extract` then computes again. Exit code 4 means that other damage is left.
    """
    from store.care.repair import repair

    done = repair(_folder(path, config_path, flags), quick)
    for file in done.written:
        click.echo(f"{file}: was damaged, is written again")
    for stray, target in done.moved.items():
        click.echo(f"{stray}: did not belong there, is moved to {target}")
    for finding in done.findings:
        if finding.shard is not None or finding in done.left:
            click.echo(str(finding))
    listed = ", ".join(str(shard) for shards in done.withdrawn.values() for shard in shards)
    click.echo(f"withdrawn: shard {listed}" if listed else "no shard is damaged, none is withdrawn")
    return 4 if done.left else 0


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
def compact(path: StoreLocation | None, config_path: Path, **flags: Any) -> None:
    """Join the small files of a store, to open it sooner.

    The commit records of PATH (default: the config's store), a file per shard, are gathered in one file. This pays off above
    10,000 shards. Workers and readers may continue meanwhile, and the command may be run again.
    """
    from store.layout.plan import read_plan
    from store.log.commits import COMPACTED, compact, log_folder

    store = _folder(path, config_path, flags)
    for generation in range(read_plan(store).generation + 1):
        records = compact(store, generation)
        click.echo(f"{counted(records, 'commit record')} in {log_folder(store, generation) / COMPACTED}")


@group.command()
@click.argument("array", type=click.Choice(["projected"]))
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--device", default="auto", show_default=True, help="Device to compute on.")
def derive(array: str, path: StoreLocation | None, config_path: Path, device: str, **flags: Any) -> None:
    """Compute the array `projected` from the array `raw`.

    Uses the projector in PATH (default: the config's store); no image is read.
    """
    from store.care.derive import derive_projected

    store = _folder(path, config_path, flags)
    shards = derive_projected(store, device)
    click.echo(f"{counted(shards, 'shard')} of {array} written to {store}")


@group.command()
@click.argument("array")
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
def drop(array: str, path: StoreLocation | None, config_path: Path, **flags: Any) -> None:
    """Remove ARRAY from PATH (default: the config's store)."""
    from store.care.drop import drop

    store = _folder(path, config_path, flags)
    click.echo(f"{drop(store, array) / 1e9:.3f} GB freed in {store}")


@group.command()
@click.argument("path", type=STORE)
@click.option(
    "--hdf5", type=click.Path(path_type=Path), help="HDF5 file to write; `import` turns it into a store again."
)
@click.option(
    "--safetensors", type=click.Path(path_type=Path), help="Folder to write, with one safetensors file per shard."
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    help="Archive to write: zstd, read-only.",
)
@click.option("--store", type=click.Path(path_type=Path), help="Ordinary store to write; this unpacks an archive.")
@click.option("--overwrite", is_flag=True, help="Replace the HDF5 file if it exists.")
def export(path: StoreLocation, overwrite: bool, **targets: Path | None) -> None:
    """Write the features of a store in another form.

    Writes the committed shards of PATH in exactly one of the four forms.
    """
    named = {form: out for form, out in targets.items() if out is not None}
    if len(named) != 1:
        listed = ", ".join(f"--{form}" for form in targets)
        raise click.UsageError(f"expected exactly one of {listed}, got {len(named)}: name one target")
    [(form, out)] = named.items()
    if overwrite and form != "hdf5":
        raise click.UsageError(f"--overwrite replaces a file, --{form} writes a folder: remove {out} first")
    from store.reading.reader import FeatureStore

    store = FeatureStore.open(path)
    if form == "hdf5":
        from store.copies.hdf5 import export_hdf5

        export_hdf5(store, out, overwrite)
    elif form == "safetensors":
        from store.copies.safetensors_export import export_safetensors

        export_safetensors(store, out)
    else:
        from store.copies.contents import Contents
        from store.copies.copies import config_for, write_copy

        codec = "zstd" if form == "archive" else "none"
        write_copy(Contents.of(store), out, codec, config_for(store.config, path, form, out))
    click.echo(f"written to {out}", err=True)


@group.command("import")
@click.argument("hdf5", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
def import_(hdf5: Path, store: Path) -> None:
    """Make a store from the file that `export --hdf5` wrote."""
    from store.copies.copies import write_copy
    from store.copies.hdf5_import import opened

    with opened(hdf5) as contents:
        write_copy(contents, store)
    click.echo(f"written to {store}", err=True)
