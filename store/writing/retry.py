"""Trying images again that could not be encoded: their shards are withdrawn, and the good rows of these shards are copied.

A shard is written as a whole, even for a single mended image. The record that was withdrawn is kept in
`retried/<generation>/<shard>.json` until the shard is committed again: it tells which rows of the old file are right.
"""

from collections.abc import Callable, Collection, Sequence
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
from store.reading.opening import require_fits_plan
from store.reading.shard_file import MappedShard

FOLDER = "retried"
"""Folder of a store that holds the withdrawn records."""
_RowValues = NDArray[np.generic]


@dataclass(frozen=True)
class KeptRows:
    """Features of a withdrawn shard that are right, so that no tower has to compute them again."""

    rows: frozenset[int] = frozenset()
    """Rows whose features are right."""
    arrays: dict[str, _RowValues] = field(default_factory=dict[str, _RowValues])
    """The whole shard by array, as (image, *shape) in storage dtype; all rows that are not in `rows` hold fill."""


def withdraw_failures(
    store: Path, plan: Plan, but: str, can_be_made: Callable[[int], bool], not_asked_for: Collection[int] = ()
) -> list[int]:
    """Withdraw the shards of images that could not be encoded, so that these images are tried again.

    The caller holds the store's exclusive lock.

    Args:
        store: Folder of the store.
        plan: The store's newest plan.
        but: The reason of failures that are not tried again, because they would fail again.
        can_be_made: Says whether the features of a row can be computed now.
        not_asked_for: Rows whose failure alone is no reason to withdraw a shard.

    Returns:
        Shards that were not withdrawn, because they hold good features of rows that cannot be computed any more: if the
        process were killed while it writes such a shard again, these features would be lost.
    """
    spared: set[int] = set()
    for generation in range(plan.generation + 1):
        log = read_commits(store, generation)
        again = [row for row, why in log.failures.items() if why != but and row not in not_asked_for]
        shards = {row // plan.shard_images for row in again}
        good = {shard: [row for row in plan.rows(shard) if row not in log.failures] for shard in shards}
        spared |= {shard for shard, rows in good.items() if not all(map(can_be_made, rows))}
        for shard in sorted(shards - spared):
            write_atomically(_path(store, shard, generation), log[shard].model_dump_json(indent=1) + "\n")
        withdraw(store, sorted(shards - spared), generation)
    return sorted(spared)


def kept_of(store: Path, plan: Plan, ids: ImageIds, shard: int, generations: Sequence[int]) -> KeptRows:
    """Read the good rows of a withdrawn shard, of the arrays of some generations; no rows if any part of it is damaged.

    Every row is compared with its checksum, and every file with its record.
    """
    records: dict[int, CommitRecord] = {}
    try:
        for generation in generations:
            record = intact_record(content(_path(store, shard, generation)))
            if record is None or record.shard != shard:
                return KeptRows()
            require_fits_plan(store, plan, ids, record, generation, believe_plan=False)
            records[generation] = record
        failed = {row for record in records.values() for row in record.failures}
        rows = [row for row in plan.rows(shard) if row not in failed]
        arrays = {
            spec.name: _read(store, plan, spec.name, record, rows)
            for generation, record in records.items()
            for spec in plan.arrays_of(generation, shard)
        }
    except (FileNotFoundError, Unreadable, IntegrityError):
        return KeptRows()
    return KeptRows(frozenset(rows), arrays) if failed else KeptRows()


def forget(store: Path, shard: int, generation: int) -> None:
    """Remove the withdrawn record of a shard that is committed again."""
    _path(store, shard, generation).unlink(missing_ok=True)


def _read(store: Path, plan: Plan, name: str, record: CommitRecord, rows: Sequence[int]) -> _RowValues:
    """Read some rows of an array of a withdrawn shard into a whole shard whose other rows hold fill."""
    spec, written, shard_rows = plan.array(name), record.files[name], plan.rows(record.shard)
    path = store / FEATURES / written.path
    file = MappedShard(path, plan.layout(name), len(shard_rows), written, "it is encoded again", None, "first-read")
    values = np.full((len(shard_rows), *spec.shape), spec.fill, spec.storage)
    for row in rows:
        file.read(row - shard_rows.start, values[row - shard_rows.start])
    return values


def _path(store: Path, shard: int, generation: int) -> Path:
    return store / FOLDER / str(generation) / f"{shard}.json"
