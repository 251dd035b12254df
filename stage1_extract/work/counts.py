"""Count, from the commit log, what an extraction did, and what the store holds of the images that it was asked for."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from stage1_extract.sources import Sources
from store.layout.plan import Plan
from store.log.commits import read_commit
from store.log.progress import committed_failures, missing_parts


def counts(
    path: Path, plan: Plan, sources: Sources, parts: Iterable[tuple[int, int]], leave: Collection[str]
) -> dict[str, Any]:
    """Count the records that a run added to the log, the images that are asked for, and list all failures of the store.

    Args:
        path: Folder of the store.
        plan: Plan of the store.
        sources: The images by the plan's rows.
        parts: Generation and shard of each record that was missing before the run.
        leave: Derived arrays that do not count.

    """
    records = [record for generation, shard in parts if (record := read_commit(path, shard, generation)) is not None]
    tower_images = {record.shard: record.telemetry["tower_images"] for record in records}
    failures, others = committed_failures(path, plan), sources.not_asked_for
    whole = {*range(plan.n_shards)} - {shard for _, shard in missing_parts(path, plan, leave)}
    lacking = sum(row // plan.shard_images in whole for row in failures)
    stored = sum(len(plan.rows(shard)) for shard in whole) - lacking
    others_stored = sum(row // plan.shard_images in whole and row not in failures for row in others)
    return {
        "asked": {
            "images": plan.n_images - len(others),
            "stored": stored - others_stored,
            "failures": _named({row: why for row, why in failures.items() if row not in others}, sources),
        },
        "stored": stored,
        "tower_images": sum(tower_images.values()),
        "shards": plan.n_shards,
        "shards_written": len(tower_images),
        "bytes_written": sum(file.bytes for record in records for file in record.files.values()),
        "failures": _named(failures, sources),
    }


def _named(failures: dict[int, str], sources: Sources) -> dict[str, str]:
    """Map the names of failed rows to the reasons; a row without a name holds the old content of a changed file."""
    names = [source.names for source in sources.rows]
    return {", ".join(names[row]): reason for row, reason in failures.items() if names[row]}
