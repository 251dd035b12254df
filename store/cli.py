"""`python -m store`: look into a store, move it. `--help` and `inspect` import neither torch nor transformers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from configs.cli import STORE
from configs.experiment import StoreLocation, local_folder
from configs.files import portable
from configs.files.seal import is_as_sealed, sealed_as
from configs.flags import Commands, experiment_from, experiment_options


@click.group(cls=Commands)
def group() -> None:
    """The cached features: what is in a store, whether it is whole, and other forms of it."""


def _location(path: StoreLocation | None, config_path: Path, flags: dict[str, Any]) -> StoreLocation:
    return path or experiment_from(config_path, flags).store_location


def _folder(path: StoreLocation | None, config_path: Path, flags: dict[str, Any]) -> Path:
    return local_folder(_location(path, config_path, flags))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(path: StoreLocation | None, config_path: Path, as_json: bool, **flags: Any) -> None:
    """Print arrays, fingerprints, committed and missing shards and failures of PATH (default: the config's store)."""
    from store.care.inspect import as_text, report

    found = report(_location(path, config_path, flags))
    click.echo(json.dumps(found) if as_json else as_text(found))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--quick", is_flag=True, help="Sizes, metadata and the log only; seconds instead of reading every byte.")
@click.option("--sources", is_flag=True, help="Also compare the image files with what was encoded.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def verify(
    context: click.Context, path: StoreLocation | None, config_path: Path, quick: bool, sources: bool, as_json: bool,
    **flags: Any,
) -> int:  # fmt: skip
    """Check that every byte of PATH (default: the config's store) is as it was committed; exit 4 if not."""
    from dataclasses import asdict

    from store.care.verify import verify

    location = _location(path, config_path, flags)
    found = verify(location, quick)
    typed = context.get_parameter_source("config_path") is not ParameterSource.DEFAULT
    changed = _changed_sources([str(location), *(["--config", str(config_path)] * typed)]) if sources else []
    if as_json:
        click.echo(json.dumps({"findings": [asdict(one) for one in found], "changed_sources": changed}))
    else:
        for one in found:
            click.echo(str(one))
        for one in changed:
            click.echo(f"image differs from what was encoded: {one}")
        if changed:
            click.echo("bring the files back, or let `extract --append` encode what changed as it is now")
        if not found and not changed:
            click.echo("nothing is damaged")
    return 4 if found or changed else 0


def _changed_sources(arguments: list[str]) -> list[str]:
    """Stage 1 knows how to read images: it is asked in a process of its own, as no stage is imported here."""
    command = [sys.executable, "-m", "stage1_extract", "verify", *arguments, "--sources", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 4):
        raise SystemExit(done.returncode)
    return [f"{one['name']} ({one['reason']})" for one in json.loads(done.stdout)["changed"]]


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--json", "as_json", is_flag=True, help="Print the status as JSON.")
def status(path: StoreLocation | None, config_path: Path, as_json: bool, **flags: Any) -> None:
    """Print how far a run is: the extraction into PATH (a store or a run folder; default: the config's), and what is
    evaluated, swept and trained in the run folder. May be asked while they run.
    """
    from store.care.status import as_text, status_of_run

    experiment = None if path else experiment_from(config_path, flags)
    store, run = (path, None) if experiment is None else (experiment.store_location, experiment.run_dir)
    found = status_of_run(store, run)
    click.echo(json.dumps(found) if as_json else as_text(found))


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--quick", is_flag=True, help="Look at sizes, metadata and the log only.")
def repair(path: StoreLocation | None, config_path: Path, quick: bool, **flags: Any) -> int:
    """Write what follows from the rest of PATH (default: the config's store) again, and withdraw exactly the damaged shards,
    for `make extract` to compute; exit 4 if something is left that neither mends.
    """
    from store.care.repair import repair

    done = repair(_folder(path, config_path, flags), quick)
    for file in done.written:
        click.echo(f"{file}: was damaged, is written again")
    for stray, place in done.moved.items():
        click.echo(f"{stray}: did not belong there, is moved to {place}")
    for one in [one for one in done.findings if one.shard is not None or one in done.left]:
        click.echo(str(one))
    listed = ", ".join(str(shard) for bad in done.withdrawn.values() for shard in bad)
    click.echo(f"withdrawn: shard {listed}" if listed else "no shard is damaged, none is withdrawn")
    return 4 if done.left else 0


@group.command()
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
def compact(path: StoreLocation | None, config_path: Path, **flags: Any) -> None:
    """Gather the commit records of PATH (default: the config's store) into one file: opens sooner, above 10,000 shards.

    Each shard has a small file of its own until then. Workers and readers may go on meanwhile, and it may be done again.
    """
    from store.layout.plan import read_plan
    from store.log.commits import COMPACTED, compact, log_folder

    store = _folder(path, config_path, flags)
    for generation in range(read_plan(store).generation + 1):
        records = compact(store, generation)
        click.echo(f"{records} commit records in {log_folder(store, generation) / COMPACTED}")


@group.command()
@click.argument("array", type=click.Choice(["projected"]))
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
@click.option("--device", default="auto", show_default=True, help="Device to compute on.")
def derive(array: str, path: StoreLocation | None, config_path: Path, device: str, **flags: Any) -> None:
    """Make `projected` of PATH (default: the config's store) from its `raw` and its projector, without any image."""
    from store.care.derive import derive_projected

    store = _folder(path, config_path, flags)
    shards = derive_projected(store, device)
    click.echo(f"{shards} shards of {array} written to {store}")


@group.command()
@click.argument("array")
@click.argument("path", type=STORE, required=False)
@experiment_options("store")
def drop(array: str, path: StoreLocation | None, config_path: Path, **flags: Any) -> None:
    """Take ARRAY out of PATH (default: the config's store), and its bytes off the disk."""
    from store.care.drop import drop

    store = _folder(path, config_path, flags)
    click.echo(f"{drop(store, array) / 1e9:.3f} GB freed in {store}")


@group.command()
@click.argument("path", type=STORE)
@click.option("--hdf5", type=click.Path(path_type=Path), help="HDF5 file to write; `import` makes a store of it again.")
@click.option("--safetensors", type=click.Path(path_type=Path), help="Folder to write, a safetensors file per shard.")
@click.option("--archive", type=click.Path(path_type=Path), help="Store to write, compressed with zstd and only read.")
@click.option("--store", type=click.Path(path_type=Path), help="Store to write, as any other: unpacks an archive.")
@click.option("--overwrite", is_flag=True, help="Replace the HDF5 file if it exists.")
def export(path: StoreLocation, overwrite: bool, **targets: Path | None) -> None:
    """Write what is committed of the store at PATH in another form; exactly one of the four."""
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
        from store.copies.copies import write_copy

        write_copy(
            Contents.of(store), out, "zstd" if form == "archive" else "none", _config_for(store.config, path, form, out)
        )
    click.echo(f"written to {out}", err=True)


def _config_for(config: bytes | None, path: StoreLocation, form: str, out: Path) -> bytes | None:
    """The config of a copy. An archive is to be shared: its config names no place. Another copy's leads to the same places."""
    if config is None:
        return None
    from store.errors import IntegrityError

    if not is_as_sealed(config):
        raise IntegrityError(
            f"expected {path}/config.yaml as it was written, it has changed: run `python -m store repair {path}`, or delete it"
        )
    if form == "store" and isinstance(path, Path):
        return sealed_as(portable.moved(config, path, out), config).encode()
    return sealed_as(portable.redacted(config), config).encode()


@group.command("import")
@click.argument("hdf5", type=click.Path(path_type=Path))
@click.argument("store", type=click.Path(path_type=Path))
def import_(hdf5: Path, store: Path) -> None:
    """Make a new store at STORE of the file that `export --hdf5` wrote."""
    from store.copies.copies import write_copy
    from store.copies.hdf5_import import opened

    with opened(hdf5) as contents:
        write_copy(contents, store)
    click.echo(f"written to {store}", err=True)
