"""Is every byte of a store as it was committed? What is not is a finding, with what makes it whole again."""

import os
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from configs.experiment import StoreLocation
from store.commits import CommitLog, CommitRecord, damaged_records, intact_records, log_folder
from store.errors import IntegrityError
from store.manifest import HEAL, file_digest, read_manifest
from store.plan import FEATURES, Plan, plan_path, read_plan
from store.reader import require_ours, stored_ids
from store.remote import RemoteStore, reached
from store.schema import Layout
from store.shard import FileRecord, Readable, checksum_of

THREADS = 4
_AT_ONCE = 4096


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed."""

    path: str
    problem: str
    shard: int | None
    """The shard whose commit `repair` withdraws; None where the next extraction writes the file again by itself."""
    generation: int = 0
    """In whose log that commit is."""

    def __str__(self) -> str:
        remedy = HEAL if self.shard is None else f"`repair` withdraws shard {self.shard}"
        return f"{self.path}: {self.problem}; {remedy}"


class _Files:
    """The files of a store in a folder."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def size(self, name: str) -> int | None:
        try:
            return (self._store / name).stat().st_size
        except FileNotFoundError:
            return None

    @contextmanager
    def open(self, name: str) -> Generator[Readable, None, None]:
        with (self._store / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield file


def verify(location: StoreLocation, quick: bool) -> list[Finding]:
    """Everything that is wrong with a store; `quick` compares sizes and the log, not every checksum.

    Raises StoreMissing (exit 5) if there is none, IntegrityError (exit 4) if the plan itself cannot be read.
    """
    with reached(location) as (store, remote):
        found = _findings(store, remote or _Files(store), quick)
        return found if remote is None else [replace(one, path=remote.said(one.path)) for one in found]


def _findings(store: Path, shards: _Files | RemoteStore, quick: bool) -> list[Finding]:
    plan = read_plan(store)
    found = list(_static(store, plan, quick))
    logs: list[tuple[int, CommitLog, list[int]]] = []
    for generation in range(plan.generation + 1):
        found += [
            Finding(str(path), "not a commit record as it was written", shard, generation)
            for path, shard in damaged_records(store, generation)
        ]
        records = intact_records(store, generation)
        foreign = list(_foreign(store, plan, generation, records))
        found += foreign
        logs.append((generation, records, sorted(records.keys() - {one.shard for one in foreign})))

    def look(at: tuple[int, int, str, FileRecord]) -> str | None:
        _, _, name, record = at
        return _size(shards, record) or (None if quick else _content(shards, record, plan.layout(name)))

    with ThreadPoolExecutor(THREADS) as pool, tqdm(desc="verify", unit="file", disable=None) as bar:
        bar.total = sum(len(plan.arrays_of(generation, shard)) for generation, _, listed in logs for shard in listed)
        files = _committed_files(plan, logs)
        while some := list(islice(files, _AT_ONCE)):  # of millions of files, not all at a time are in memory
            found += [
                Finding(str(store / FEATURES / record.path), problem, shard, generation)
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


def _static(store: Path, plan: Plan, quick: bool) -> Iterator[Finding]:
    """What is no shard: plan, metadata, ids, projector."""
    try:
        manifest = read_manifest(store, plan.generation)
    except IntegrityError as error:
        yield Finding(str(store / "plans"), str(error).partition(": run")[0], None)
        return
    for generation in range(plan.generation + 1):
        path = plan_path(store, generation)
        if file_digest(path) != plan.digest_of(generation) or (
            generation == plan.generation and manifest.plan != plan.digest
        ):
            yield Finding(str(path), "changed or missing", None)
    for name in manifest.damaged(store / FEATURES, metadata_only=quick):
        yield Finding(str(store / FEATURES / name), "changed or missing", None)


def _foreign(store: Path, plan: Plan, generation: int, records: Mapping[int, CommitRecord]) -> Iterator[Finding]:
    """Records that are about something else than the plan."""
    try:
        ids = stored_ids(store, plan)
    except IntegrityError:
        return  # already among the findings; the records can be judged when the ids are whole again
    for shard, record in records.items():
        try:
            require_ours(store, plan, ids, record, generation, believe_plan=False)
        except IntegrityError as error:
            path = log_folder(store, generation) / f"{shard}.json"
            yield Finding(str(path), str(error).partition(": ")[0], shard, generation)


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
