"""`python -m store`: look into a store, export it. `--help` and `inspect` import neither torch nor transformers."""

import json
from pathlib import Path
from typing import Any

import click

from configs.cli import experiment_from, experiment_options


@click.group()
def group() -> None:
    """The cached features: what is in a store, and HDF5 out of it."""


@group.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@experiment_options("store")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(path: Path | None, config_path: Path, as_json: bool, **flags: Any) -> None:
    """Print arrays, fingerprints, committed and missing shards and failures of PATH (default: the config's store)."""
    from store.inspect import as_text, report

    found = report(path or experiment_from(config_path, flags).store_path)
    click.echo(json.dumps(found) if as_json else as_text(found))


@group.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--hdf5", "out", type=click.Path(path_type=Path), required=True, help="HDF5 file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def export(path: Path, out: Path, overwrite: bool) -> None:
    """Write the committed rows of the store at PATH to one HDF5 file."""
    from store.export import export_hdf5
    from store.reader import FeatureStore

    export_hdf5(FeatureStore.open(path), out, overwrite)
    click.echo(f"written to {out}", err=True)
