"""Is every byte of a store as it was committed? What is not is a finding, with what makes it whole again."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from store.commits import CommitRecord, damaged_records, intact_records
from store.errors import IntegrityError
from store.manifest import HEAL, read_manifest
from store.plan import PLAN, Plan, read_plan
from store.reader import FEATURES, require_ours, stored_ids
from store.shard import FileRecord, crc

THREADS = 4
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was committed."""

    path: str
    problem: str
    shard: int | None
    """The shard whose commit `repair` withdraws; None where the next extraction writes the file again by itself."""

    def __str__(self) -> str:
        remedy = HEAL if self.shard is None else f"`repair` withdraws shard {self.shard}"
        return f"{self.path}: {self.problem}; {remedy}"


def verify(store: Path, quick: bool) -> list[Finding]:
    """Everything that is wrong with the store at `store`; `quick` compares sizes and the log, not every checksum.

    Raises StoreMissing (exit 5) if there is none, IntegrityError (exit 4) if the plan itself cannot be read.
    """
    plan = read_plan(store)
    found = list(_static(store, plan, quick))
    found += [
        Finding(str(path), "not a commit record as it was written", shard) for path, shard in damaged_records(store)
    ]
    records = intact_records(store)
    foreign = list(_foreign(store, plan, records))
    found += foreign
    ours = [record for shard, record in records.items() if shard not in {one.shard for one in foreign}]
    files = [(record.shard, file) for record in ours for file in record.files.values()]
    look = _size if quick else _checksum
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(look, [store / FEATURES / file.path for _, file in files], [file for _, file in files])
        shown = tqdm(problems, "verify", len(files), unit="file", disable=None)
        found += [
            Finding(str(store / FEATURES / file.path), problem, shard)
            for (shard, file), problem in zip(files, shown, strict=True)
            if problem is not None
        ]
    return found


def bad_shards(findings: list[Finding]) -> list[int]:
    """The shards whose commits are to be withdrawn."""
    return sorted({one.shard for one in findings if one.shard is not None})


def _static(store: Path, plan: Plan, quick: bool) -> Iterator[Finding]:
    """What is no shard: plan, metadata, ids, projector."""
    try:
        manifest = read_manifest(store, plan.generation)
    except IntegrityError as error:
        yield Finding(str(store / "plans"), str(error).partition(": run")[0], None)
        return
    if manifest.plan != plan.digest:
        yield Finding(str(store / PLAN), "changed since it was written", None)
    for name in manifest.damaged(store / FEATURES, metadata_only=quick):
        yield Finding(str(store / FEATURES / name), "changed or missing", None)


def _foreign(store: Path, plan: Plan, records: Mapping[int, CommitRecord]) -> Iterator[Finding]:
    """Records that are about something else than the plan."""
    try:
        ids = stored_ids(store, plan)
    except IntegrityError:
        return  # already among the findings; the records can be judged when the ids are whole again
    for shard, record in records.items():
        try:
            require_ours(store, plan, ids, record, believe_plan=False)
        except IntegrityError as error:
            yield Finding(str(store / "commits" / f"{shard}.json"), str(error).partition(": ")[0], shard)


def _size(path: Path, record: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    return None if size == record.bytes else f"expected {record.bytes:,} bytes, found {size:,}"


def _checksum(path: Path, record: FileRecord) -> str | None:
    wrong = _size(path, record)
    if wrong is not None:
        return wrong
    found = 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while block := file.read(_BLOCK):
            found = crc(block, found)
    return None if found == record.crc32c else f"expected crc32c {record.crc32c:08x}, found {found:08x}"
