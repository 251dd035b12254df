"""A store out of the contents of another: an ordinary one, or an archive."""

import shutil
import time
from pathlib import Path

from configs.progress import ProgressBar
from store.copies.contents import Contents
from store.errors import NoSpace, StoreMissing
from store.layout.schema import Codec
from store.writing.aside import written_aside
from store.writing.writer import StoreWriter


def write_copy(contents: Contents, out: Path, codec: Codec = "none", config: bytes | None = None) -> None:
    """Make a store at `out`, whole or not at all, with `config` as its `config.yaml`.

    Of equal contents it is identical to the store that they came from. With the codec zstd it is an archive: smaller, slower
    to read, and never written to. Raises TargetExists (exit 2), NonFinite (exit 3), NoSpace (exit 7).
    """
    if codec != "none" and not contents.shards:
        raise StoreMissing("expected committed shards to archive, there are none yet: run `make extract` first")
    with written_aside(out) as aside:
        if codec == "none":
            _require_room(contents, aside)
        with StoreWriter.open(aside, contents.plan, contents.ids, contents.projector, codec=codec) as writer:
            for shard in ProgressBar(contents.shards, "copy", unit="shards"):
                _copy_shard(contents, writer, shard)
        if config is not None:
            (aside / "config.yaml").write_bytes(config)


def _copy_shard(contents: Contents, writer: StoreWriter, shard: int) -> None:
    began, plan = time.time(), contents.plan
    values = {spec.name: contents.filled(spec.name, shard) for spec in plan.arrays}
    failures = {row: contents.failures[row] for row in plan.rows(shard) if row in contents.failures}
    telemetry = {"began": began, "ended": time.time(), "tower_images": 0, "worker": "copy"}
    writer.commit_shard(shard, values, failures, telemetry)


def _require_room(contents: Contents, aside: Path) -> None:
    plan = contents.plan
    needed = sum(plan.layout(a.name).file_bytes(len(plan.rows(s))) for s in contents.shards for a in plan.arrays)
    free = shutil.disk_usage(aside.parent).free
    if needed > free:
        raise NoSpace(f"expected {needed:,} free bytes in {aside.parent}, there are {free:,}: make room first")
