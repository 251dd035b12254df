"""Count, from the commit log, what an extraction did."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stage1_extract.sources import Sources
from store.layout.plan import Plan
from store.log.commits import read_commit
from store.log.progress import committed_failures


def counts(path: Path, plan: Plan, sources: Sources, parts: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Count the records that a run added to the log, and list all failures of the store.

    Args:
        path: Folder of the store.
        plan: Plan of the store.
        sources: The images by the plan's rows.
        parts: Generation and shard of each record that was missing before the run.

    """
    records = [record for generation, shard in parts if (record := read_commit(path, shard, generation)) is not None]
    tower_images = {record.shard: record.telemetry["tower_images"] for record in records}
    names = [source.names for source in sources.rows]
    failures = committed_failures(path, plan)
    return {
        "tower_images": sum(tower_images.values()),
        "shards": plan.n_shards,
        "shards_written": len(tower_images),
        "bytes_written": sum(file.bytes for record in records for file in record.files.values()),
        "failures": {", ".join(names[row]): reason for row, reason in failures.items() if names[row]},
    }
