"""Trying images again that could not be encoded: their shards are withdrawn, and what else is in these files is copied.

A shard is written as a whole, so one mended image writes a shard. The record that was withdrawn is kept aside, in
`retried/<generation>/<shard>.json`, until the shard is committed again: with it, rows of the old file are known to be right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.files.atomic import write_atomically
from store.errors import IntegrityError
from store.files.disk import Unreadable, content
from store.layout.ids import ImageIds
from store.layout.plan import FEATURES, Plan
from store.layout.record import CommitRecord, intact_record
from store.log.commits import read_commits, withdraw
from store.reading.opening import require_ours
from store.reading.shard_file import MappedShard

FOLDER = "retried"
_Values = NDArray[np.generic]


@dataclass(frozen=True)
class Kept:
    """Features of a withdrawn shard that are right, and need no tower."""

    rows: frozenset[int] = frozenset()
    arrays: dict[str, _Values] = field(default_factory=dict[str, _Values])
    """Whole shards of arrays, as (image, *shape) in storage dtype; all other rows hold fill."""


def withdraw_failures(store: Path, plan: Plan, but: str, can_be_made: Callable[[int], bool]) -> list[int]:
    """Withdraw the shards of images that could not be encoded, so that they are tried again; the caller is alone.

    Those that failed for the reason `but` would fail again. Returns shards that stay, because they hold features of rows
    that cannot be made any more: of a process that is killed while it writes them, these rows would be lost.
    """
    spared: set[int] = set()
    for generation in range(plan.generation + 1):
        log = read_commits(store, generation)
        shards = {row // plan.shard_images for row, why in log.failures.items() if why != but}
        good = {shard: [row for row in plan.rows(shard) if row not in log.failures] for shard in shards}
        spared |= {shard for shard, rows in good.items() if not all(map(can_be_made, rows))}
        for shard in sorted(shards - spared):
            write_atomically(_path(store, shard, generation), log[shard].model_dump_json(indent=1) + "\n")
        withdraw(store, sorted(shards - spared), generation)
    return sorted(spared)


def kept_of(store: Path, plan: Plan, ids: ImageIds, shard: int, generations: Sequence[int]) -> Kept:
    """What a withdrawn shard holds of the arrays of some generations; nothing where any of it is damaged.

    Every row is compared with its checksum, and the file with its record.
    """
    records: dict[int, CommitRecord] = {}
    try:
        for generation in generations:
            record = intact_record(content(_path(store, shard, generation)))
            if record is None or record.shard != shard:
                return Kept()
            require_ours(store, plan, ids, record, generation, believe_plan=False)
            records[generation] = record
        failed = {row for record in records.values() for row in record.failures}
        rows = [row for row in plan.rows(shard) if row not in failed]
        arrays = {
            spec.name: _read(store, plan, spec.name, record, rows)
            for generation, record in records.items()
            for spec in plan.arrays_of(generation, shard)
        }
    except (FileNotFoundError, Unreadable, IntegrityError):
        return Kept()
    return Kept(frozenset(rows), arrays) if failed else Kept()


def forget(store: Path, shard: int, generation: int) -> None:
    """Remove the record that was kept aside: the shard is committed again."""
    _path(store, shard, generation).unlink(missing_ok=True)


def _read(store: Path, plan: Plan, name: str, record: CommitRecord, rows: Sequence[int]) -> _Values:
    spec, written, of_shard = plan.array(name), record.files[name], plan.rows(record.shard)
    path = store / FEATURES / written.path
    file = MappedShard(path, plan.layout(name), len(of_shard), written, "it is encoded again", None, "first-read")
    values = np.full((len(of_shard), *spec.shape), spec.fill, spec.storage)
    for row in rows:
        file.read(row - of_shard.start, values[row - of_shard.start])
    return values


def _path(store: Path, shard: int, generation: int) -> Path:
    return store / FOLDER / str(generation) / f"{shard}.json"
