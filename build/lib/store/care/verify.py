"""Is every byte of a store as it was committed? What is not is a finding, with what makes it whole again."""

import errno
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from configs.experiment import StoreLocation
from configs.progress import ProgressBar
from store.care.verify_small import small_files
from store.errors import IntegrityError, StoreError
from store.files.disk import Unreadable, without_waiting
from store.layout.plan import FEATURES, Plan, plan_path, read_plan
from store.layout.schema import Codec, Layout
from store.layout.shard import FileRecord, Readable, checksum_of
from store.log.commits import CommitLog, CommitRecord, damaged_records, intact_records, log_folder
from store.log.finding import ARCHIVE, Finding
from store.log.progress import stored_codec
from store.reading.opening import require_ours, stored_ids
from store.reading.remote import RemoteStore, reached

THREADS = 4
_AT_ONCE = 4096


class _Files:
    """The files of a store in a folder."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def size(self, name: str) -> int | None:
        path = self._store / name
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no file", name)
        return status.st_size

    @contextmanager
    def open(self, name: str) -> Generator[Readable, None, None]:
        with open(self._store / name, "rb", opener=without_waiting) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield file


def verify(location: StoreLocation, quick: bool) -> list[Finding]:
    """Everything that is wrong with a store; `quick` compares sizes and the log, not every checksum.

    Raises StoreMissing (exit 5) if there is none, IntegrityError (exit 4) if the plan itself cannot be read.
    """
    with reached(location) as (store, remote):
        if remote is None:
            return _findings(store, _Files(store), quick)
        return [
            replace(one, path=remote.said(one.path), remedy=f"copy it to {location} again")
            for one in _findings(store, remote, quick)
        ]


def _findings(store: Path, shards: _Files | RemoteStore, quick: bool) -> list[Finding]:
    plan = read_plan(store)
    found = list(small_files(store, plan, quick))
    if any(one.path == str(plan_path(store, plan.generation)) for one in found):
        return found  # nothing else can be judged by a plan that is not what was written
    remedies = _Remedies(plan, stored_codec(store))
    logs: list[tuple[int, CommitLog, list[int]]] = []
    for generation in range(plan.generation + 1):
        found += [
            Finding(
                str(path), "not a commit record as it was written", shard, remedies.of(shard, generation), generation
            )
            for path, shard in _damaged(store, plan, generation)
        ]
        records = intact_records(store, generation)
        foreign = list(_foreign(store, plan, generation, records, remedies))
        found += foreign
        logs.append((generation, records, sorted(records.keys() - {one.shard for one in foreign})))

    def look(at: tuple[int, int, str, FileRecord]) -> str | None:
        _, _, name, record = at
        try:
            return _size(shards, record) or (None if quick else _content(shards, record, plan.layout(name)))
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    total = sum(len(plan.arrays_of(generation, shard)) for generation, _, listed in logs for shard in listed)
    with ThreadPoolExecutor(THREADS) as pool, ProgressBar(what="verify", total=total, unit="files") as bar:
        files = _committed_files(plan, logs)
        while some := list(islice(files, _AT_ONCE)):  # of millions of files, not all at a time are in memory
            found += [
                Finding(str(store / FEATURES / record.path), problem, shard, remedies.of(shard, generation), generation)
                for (generation, shard, _, record), problem in zip(some, pool.map(look, some), strict=True)
                if problem is not None
            ]
            bar.update(len(some))
    return found


def _committed_files(
    plan: Plan, logs: list[tuple[int, CommitLog, list[int]]]
) -> Iterator[tuple[int, int, str, FileRecord]]:
    """Every committed file with its generation, shard and array; files of dropped arrays are gone."""
    for generation, records, shards in logs:
        for shard in shards:
            used = {spec.name for spec in plan.arrays_of(generation, shard)}
            yield from ((generation, shard, name, file) for name, file in records[shard].files.items() if name in used)


def bad_shards(findings: list[Finding]) -> dict[int, list[int]]:
    """The shards whose commits are to be withdrawn, by generation."""
    bad = {(one.generation, one.shard) for one in findings if one.shard is not None}
    return {generation: sorted(shard for of, shard in bad if of == generation) for generation, _ in sorted(bad)}


@dataclass(frozen=True)
class _Remedies:
    """What to do about damaged shards of a store."""

    plan: Plan
    codec: Codec

    def of(self, shard: int, generation: int) -> str:
        """About a record, or a file that it names."""
        if self.codec != "none":
            return ARCHIVE
        there = 0 <= shard < self.plan.n_shards
        names = {spec.name for spec in self.plan.arrays_of(generation, shard)} if there else set[str]()
        maker = "`python -m store derive projected`" if names and names <= {*self.plan.derived} else "`make extract`"
        return f"`repair` withdraws shard {shard}, then {maker} computes it again"


def _damaged(store: Path, plan: Plan, generation: int) -> list[tuple[Path, int]]:
    try:
        return damaged_records(store, generation, plan.n_shards)
    except Unreadable:  # the folder, which is among the findings
        return []


def _foreign(
    store: Path, plan: Plan, generation: int, records: Mapping[int, CommitRecord], remedies: "_Remedies"
) -> Iterator[Finding]:
    """Records that are about something else than the plan."""
    try:
        ids = stored_ids(store, plan)
        ids.columns(["sha256"])  # all that records are compared with
    except StoreError:
        return  # already among the findings; the records can be judged when the ids are whole again
    for shard, record in records.items():
        try:
            require_ours(store, plan, ids, record, generation, believe_plan=False)
        except IntegrityError as error:
            path = log_folder(store, generation) / f"{shard}.json"
            said = str(error).partition(": ")[0]
            yield Finding(str(path), said, shard, remedies.of(shard, generation), generation)


def _size(shards: _Files | RemoteStore, record: FileRecord) -> str | None:
    size = shards.size(f"{FEATURES}/{record.path}")
    if size is None:
        return "missing"
    return None if size == record.bytes else f"expected {record.bytes:,} bytes, found {size:,}"


def _content(shards: _Files | RemoteStore, record: FileRecord, layout: Layout) -> str | None:
    with shards.open(f"{FEATURES}/{record.path}") as file:
        found = checksum_of(file, layout)
    if found is None:
        return "a checksum in it differs"
    return None if found == record.crc32c else f"expected crc32c {record.crc32c:08x}, found {found:08x}"
