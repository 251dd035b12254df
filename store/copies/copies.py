"""Making a store, or an archive, from the contents of another store."""

import shutil
import time
from pathlib import Path

from configs.errors import EXTRACT
from configs.experiment import StoreLocation
from configs.files import portable
from configs.files.seal import is_as_sealed, sealed_as
from configs.progress import ProgressBar
from store.copies.contents import Contents
from store.errors import IntegrityError, NoSpace, StoreMissing
from store.layout.schema import Codec
from store.writing.aside import written_aside
from store.writing.writer import StoreWriter


def write_copy(contents: Contents, out: Path, codec: Codec = "none", config: bytes | None = None) -> None:
    """Make a store at `out`, whole or not at all; it is identical to the store that the contents came from.

    Args:
        contents: What to write.
        out: Folder of the new store, which must not exist.
        codec: With `zstd` the copy is an archive: smaller, slower to read, and never written to.
        config: What the copy's `config.yaml` holds; None writes no such file.

    Raises:
        TargetExists: something lies at `out` (exit 2).
        NonFinite: features are not numbers (exit 3).
        StoreMissing: there is nothing to archive (exit 5).
        NoSpace: the disk is full or read-only (exit 7).
    """
    if codec != "none" and not contents.shards:
        raise StoreMissing(f"expected committed shards to archive, there are none yet: run {EXTRACT} first")
    with written_aside(out) as aside:
        if codec == "none":
            _require_room(contents, aside)
        with StoreWriter.open(aside, contents.plan, contents.ids, contents.projector, codec=codec) as writer:
            for shard in ProgressBar(contents.shards, "copy", unit="shards"):
                _copy_shard(contents, writer, shard)
        if config is not None:
            (aside / "config.yaml").write_bytes(config)


def config_for(config: bytes | None, path: StoreLocation, form: str, out: Path) -> bytes | None:
    """Make the config of a copy. An archive is made to be shared, so its config names no paths; another copy keeps the paths.

    Args:
        config: What the `config.yaml` of the store at `path` holds; None if there is no such file.
        path: The store that is copied.
        form: `store` or `archive`.
        out: The folder of the copy.

    Raises:
        IntegrityError: the config has changed since it was written (exit 4).
    """
    if config is None:
        return None
    if not is_as_sealed(config):
        raise IntegrityError(
            f"expected {path}/config.yaml as it was written, it has changed: run `python -m store repair {path}`, or delete it"
        )
    if form == "store" and isinstance(path, Path):
        return sealed_as(portable.moved(config, path, out), config).encode()
    return sealed_as(portable.redacted(config), config).encode()


def _copy_shard(contents: Contents, writer: StoreWriter, shard: int) -> None:
    began, plan = time.time(), contents.plan
    values = {spec.name: contents.filled(spec.name, shard) for spec in plan.arrays}
    failures = {row: contents.failures[row] for row in plan.rows(shard) if row in contents.failures}
    telemetry = {"began": began, "ended": time.time(), "tower_images": 0, "worker": "copy"}
    writer.commit_shard(shard, values, failures, telemetry)


def _require_room(contents: Contents, aside: Path) -> None:
    """Raise NoSpace (exit 7) if the disk has less room than the copy needs."""
    plan = contents.plan
    layouts = [plan.layout(spec.name) for spec in plan.arrays]
    needed = sum(layout.file_bytes(len(plan.rows(shard))) for shard in contents.shards for layout in layouts)
    free = shutil.disk_usage(aside.parent).free
    if needed > free:
        raise NoSpace(f"expected {needed:,} free bytes in {aside.parent}, there are {free:,}: make room first")
