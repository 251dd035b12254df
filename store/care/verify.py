"""Verifying that every byte of a store is as it was committed; each finding says what makes the store whole again."""

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
from store.layout.schema import Codec, ShardLayout
from store.layout.shard import FileRecord, Readable, checksum_of
from store.log.commits import CommitLog, CommitRecord, damaged_records, intact_records, log_folder
from store.log.finding import ARCHIVE, Finding
from store.log.progress import stored_codec
from store.reading.absent import maker_of
from store.reading.opening import require_fits_plan, stored_ids
from store.reading.remote import RemoteStore, reached

THREADS = 4
"""Files that are read side by side."""
_AT_ONCE = 4096
"""Files that are handed to the threads at a time: the names of millions of files do not fit into memory."""


class _Files:
    """The files of a store in a folder, with the methods of RemoteStore that verifying needs."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def size(self, name: str) -> int | None:
        """Return the bytes that a file has; None if there is no such file, OSError if it is no regular file."""
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
        """Open a file for reading from beginning to end."""
        with open(self._store / name, "rb", opener=without_waiting) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield file


def verify(location: StoreLocation, quick: bool) -> list[Finding]:
    """List everything that is wrong with a store.

    Args:
        location: The store.
        quick: Compare sizes, metadata and the log, but not every checksum.

    Raises:
        StoreMissing: there is no store (exit 5).
        IntegrityError: the plan itself cannot be read (exit 4).
    """
    with reached(location) as (store, remote):
        if remote is None:
            return _findings(store, _Files(store), quick)
        return [
            replace(finding, path=remote.about_the_url(finding.path), remedy=f"copy it to {location} again")
            for finding in _findings(store, remote, quick)
        ]


def _findings(store: Path, shards: _Files | RemoteStore, quick: bool) -> list[Finding]:
    plan = read_plan(store)
    findings = list(small_files(store, plan, quick))
    if any(finding.path == str(plan_path(store, plan.generation)) for finding in findings):
        return findings  # a plan that is not as it was written says nothing reliable about the rest
    remedies = _Remedies(plan, stored_codec(store))
    logs: list[tuple[int, CommitLog, list[int]]] = []
    for generation in range(plan.generation + 1):
        findings += [
            Finding(
                str(path), "not a commit record as it was written", shard, remedies.of(shard, generation), generation
            )
            for path, shard in _damaged(store, plan, generation)
        ]
        records = intact_records(store, generation)
        foreign = list(_foreign(store, plan, generation, records, remedies))
        findings += foreign
        logs.append((generation, records, sorted(records.keys() - {finding.shard for finding in foreign})))

    def problem_of(file: tuple[int, int, str, FileRecord]) -> str | None:
        _, _, name, record = file
        try:
            return _size(shards, record) or (None if quick else _content(shards, record, plan.layout(name)))
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    total = sum(len(plan.arrays_of(generation, shard)) for generation, _, listed in logs for shard in listed)
    with ThreadPoolExecutor(THREADS) as pool, ProgressBar(what="verify", total=total, unit="files") as bar:
        files = _committed_files(plan, logs)
        while batch := list(islice(files, _AT_ONCE)):
            findings += [
                Finding(str(store / FEATURES / record.path), problem, shard, remedies.of(shard, generation), generation)
                for (generation, shard, _, record), problem in zip(batch, pool.map(problem_of, batch), strict=True)
                if problem is not None
            ]
            bar.update(len(batch))
    return findings


def _committed_files(
    plan: Plan, logs: list[tuple[int, CommitLog, list[int]]]
) -> Iterator[tuple[int, int, str, FileRecord]]:
    """Yield every committed file with its generation, shard and array, but for dropped arrays, whose files are gone."""
    for generation, records, shards in logs:
        for shard in shards:
            used = {spec.name for spec in plan.arrays_of(generation, shard)}
            yield from ((generation, shard, name, file) for name, file in records[shard].files.items() if name in used)


def damaged_shards(findings: list[Finding]) -> dict[int, list[int]]:
    """Return the shards whose commits are to be withdrawn, by generation."""
    damaged = {(finding.generation, finding.shard) for finding in findings if finding.shard is not None}
    generations = sorted({generation for generation, _ in damaged})
    return {generation: sorted(shard for other, shard in damaged if other == generation) for generation in generations}


@dataclass(frozen=True)
class _Remedies:
    """Says what a user can do about damaged shards of a store."""

    plan: Plan
    codec: Codec

    def of(self, shard: int, generation: int) -> str:
        """Return the remedy for a damaged commit record of a shard, or for a damaged file that the record names."""
        if self.codec != "none":
            return ARCHIVE
        exists = 0 <= shard < self.plan.n_shards
        names = {spec.name for spec in self.plan.arrays_of(generation, shard)} if exists else set[str]()
        maker = "`python -m store derive projected`" if names and names <= {*self.plan.derived} else maker_of(self.plan)
        return f"`repair` withdraws shard {shard}, then {maker} computes it again"


def _damaged(store: Path, plan: Plan, generation: int) -> list[tuple[Path, int]]:
    """List the files that should hold a commit record and do not, each with its shard."""
    try:
        return damaged_records(store, generation, plan.n_shards)
    except Unreadable:  # the folder of the log cannot be listed; `small_files` has reported that
        return []


def _foreign(
    store: Path, plan: Plan, generation: int, records: Mapping[int, CommitRecord], remedies: "_Remedies"
) -> Iterator[Finding]:
    """Report commit records that do not fit the plan."""
    try:
        ids = stored_ids(store, plan)
        ids.columns(["sha256"])  # the only column that records are compared with
    except StoreError:
        return  # `small_files` has reported the ids; the records can be judged when the ids are whole again
    for shard, record in records.items():
        try:
            require_fits_plan(store, plan, ids, record, generation, believe_plan=False)
        except IntegrityError as error:
            path = log_folder(store, generation) / f"{shard}.json"
            problem = str(error).partition(": ")[0]
            yield Finding(str(path), problem, shard, remedies.of(shard, generation), generation)


def _size(shards: _Files | RemoteStore, record: FileRecord) -> str | None:
    """Say what is wrong with the size of a committed file; None if nothing is."""
    size = shards.size(f"{FEATURES}/{record.path}")
    if size is None:
        return "missing"
    return None if size == record.bytes else f"expected {record.bytes:,} bytes, found {size:,}"


def _content(shards: _Files | RemoteStore, record: FileRecord, layout: ShardLayout) -> str | None:
    """Say what is wrong with the content of a committed file; None if nothing is."""
    with shards.open(f"{FEATURES}/{record.path}") as file:
        checksum = checksum_of(file, layout)
    if checksum is None:
        return "a checksum in it differs"
    return None if checksum == record.crc32c else f"expected crc32c {record.crc32c:08x}, found {checksum:08x}"
