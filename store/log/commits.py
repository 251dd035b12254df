"""The commit log: a shard exists if and only if its record does.

A record lies in a file of its own, `commits/<shard>.json`, or, once `compact` has gathered it, on a line of
`commits/compacted.jsonl`. It is in both where a compaction was killed; the line is the older one and counts.
What a later generation of the plan adds has a log of its own, `commits/<generation>/`.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import filelock

from configs.files.atomic import publish_once, sync_directory
from configs.progress import ProgressBar
from store.errors import IntegrityError
from store.files.disk import Unreadable, content, explaining_full_disks, listed, make_lockable, move_out, numbered
from store.files.ranges import joined, ranges_of, without
from store.layout.record import CommitRecord, intact_record
from store.log.compacted import COMPACTED, FOLDER, CommitLog, Compacted, write_compacted

LOCK = "commits.lock"
"""Held by whoever moves or removes records; adding and reading them needs no lock."""
SUPERSEDED = "superseded"
"""Why a row has no features whose file has other content by now: the image that it is now has a row of its own."""


def log_folder(store: Path, generation: int) -> Path:
    """Where the log of a generation lies."""
    return store / FOLDER / str(generation) if generation else store / FOLDER


def publish(store: Path, record: CommitRecord, generation: int = 0) -> bool:
    """Commit a shard; False if it was committed before (the first wins)."""
    folder = log_folder(store, generation)
    if record.shard in _compacted_log(folder).lines:
        return False
    text = record.sealed().model_dump_json(indent=1) + "\n"
    published = publish_once(_single_path(folder, record.shard), text)
    # A compaction may have taken an older record away between the two: what it wrote counts, be it ours or not.
    compacted = _compacted_log(folder)
    if published and record.shard in compacted.lines:
        return compacted.record(record.shard) == CommitRecord.model_validate_json(text)
    return published


def read_commits(store: Path, generation: int = 0) -> CommitLog:
    """All committed shards by number; IntegrityError (exit 4) if a record is damaged."""
    log, damaged = _look(log_folder(store, generation))
    for path, shards in damaged:
        raise _damage(store, path, shards.start)
    return log


def read_commit(store: Path, shard: int, generation: int = 0) -> CommitRecord | None:
    """The record of one shard, None if it is not committed; looks at no other record, so that it may be asked often.

    Raises IntegrityError (exit 4) if it is damaged.
    """
    folder = log_folder(store, generation)
    path = _single_path(folder, shard)
    while True:
        there = path.exists() or path.is_symlink()  # before the compacted log: records move into that, never out
        compacted = _compacted_log(folder)
        if shard in compacted.lines:
            return compacted.record(shard)
        try:
            record = _single(path) if there else None
        except FileNotFoundError:
            continue  # compacted or withdrawn since it was seen
        if there and (record is None or record.shard != shard):
            raise _damage(store, path, shard)
        if record is None and any(shard in lost for lost in compacted.lost):
            raise _damage(store, compacted.path, shard)
        return record


def intact_records(store: Path, generation: int = 0) -> CommitLog:
    """What `read_commits` returns, damaged records left out: for looking at a store that is damaged."""
    try:
        return _look(log_folder(store, generation))[0]
    except Unreadable:  # the folder
        return CommitLog({}, Compacted(log_folder(store, generation) / COMPACTED))


def damaged_records(store: Path, generation: int = 0, n_shards: int | None = None) -> list[tuple[Path, int]]:
    """Files that do not hold the record of a shard that they should, with that shard.

    Of the shards beyond `n_shards` that a compacted log claims to hold, only the first is listed.
    """
    found: list[tuple[Path, int]] = []
    for path, shards in _look(log_folder(store, generation))[1]:
        listed_shards = shards if n_shards is None else shards[: max(0, n_shards - shards.start) + 1]
        found += [(path, shard) for shard in listed_shards]
    return found


def compact(store: Path, generation: int = 0) -> int:
    """Move all records of a generation into one file, and return how many it holds.

    Opening reads that one file instead of one per shard. Workers and readers may go on meanwhile; killed at any point,
    nothing is lost. Raises IntegrityError (exit 4) if a record is damaged, NoSpace (exit 7) if the disk is full.
    """
    folder = log_folder(store, generation)
    if not folder.is_dir():
        return 0
    with _moving(store):
        files = _single_files(folder)
        log = read_commits(store, generation)
        lines = Compacted.open(folder / COMPACTED)
        if not lines.as_written or any(shard not in lines.lines for shard in log):
            shown = ProgressBar(log.values(), "compact", len(log), unit="shards")
            write_compacted(folder, ranges_of(log), (record.model_dump_json() for record in shown))
        for path in files:  # what was published since is in none of them
            path.unlink(missing_ok=True)
        sync_directory(folder)
    return len(log)


def withdraw(store: Path, shards: Iterable[int], generation: int = 0, n_shards: int | None = None) -> None:
    """Take back the commits of some shards, durably: they count as not computed from now on.

    With `n_shards`, shards that a compacted log claims to hold beyond them are taken back too.
    """
    folder, gone = log_folder(store, generation), set(shards)
    if not folder.is_dir():
        return
    with _moving(store):
        # First the files: were the line to go first, a younger record that it hides would count for a moment.
        for shard in gone:
            path = _single_path(folder, shard)
            if path.is_dir() and not path.is_symlink():
                move_out(store, path)
            path.unlink(missing_ok=True)
        sync_directory(folder)
        lines = Compacted.open(folder / COMPACTED)
        lost = without(lines.lost, gone)
        if n_shards is not None:
            lost = [one[: max(0, n_shards - one.start)] for one in lost if one.start < n_shards]
        if lines.lines.keys() & gone or lost != lines.lost:
            kept = sorted(lines.lines.keys() - gone)
            known = sorted([*ranges_of(kept), *lost], key=lambda one: one.start)
            write_compacted(folder, joined(known), (lines.record(shard).model_dump_json() for shard in kept))


def _look(folder: Path) -> tuple[CommitLog, list[tuple[Path, range]]]:
    """The intact records, and what is damaged: a file, with the shards that it should be about."""
    while True:
        files = _single_files(folder)  # before the compacted log: records move into that, never out
        compacted = Compacted.open(folder / COMPACTED)
        try:
            found = {n: _single(path) for path in files if (n := _shard(path)) not in compacted.lines}
        except FileNotFoundError:
            continue  # compacted or withdrawn since it was listed
        single = {shard: record for shard, record in found.items() if record is not None and record.shard == shard}
        damaged = [(_single_path(folder, shard), range(shard, shard + 1)) for shard in found if shard not in single]
        damaged += [(compacted.path, lost) for lost in without(compacted.lost, single)]
        return CommitLog(single, compacted), damaged


def _single_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard}.json"


def _single_files(folder: Path) -> list[Path]:
    """Whatever has the name of a record; all other names are none, see `store.care.strays`."""
    return [path for path in listed(folder) if numbered(path.name) is not None]


def _shard(path: Path) -> int:
    number = numbered(path.name)
    assert number is not None, path
    return number


def _damage(store: Path, path: Path, shard: int) -> IntegrityError:
    if path.name == COMPACTED:
        return IntegrityError(
            f"{path} was changed, its record of shard {shard} is damaged or missing: `python -m store repair {store}` "
            "withdraws it, and `make extract` computes that shard again"
        )
    return IntegrityError(
        f"{path} is not the commit record of shard {shard}, or was changed: remove it, or let "
        f"`python -m store repair {store}` do so, and run `make extract`, which computes that shard again"
    )


def _single(path: Path) -> CommitRecord | None:
    """The record in a file of its own, None if it holds none; FileNotFoundError if it is gone by now."""
    try:
        return intact_record(content(path))
    except Unreadable:
        return None


def _compacted_log(folder: Path) -> Compacted:
    """The compacted log, read again only when it was replaced: asked for by every commit."""
    path = folder / COMPACTED
    try:
        status = path.stat()
    except OSError:
        return Compacted.open(path)
    return _cached(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(8)
def _cached(path: Path, _identity: tuple[int, ...]) -> Compacted:
    return Compacted.open(path)


@contextmanager
def _moving(store: Path) -> Generator[None, None, None]:
    """Let only one process at a time move or remove records: a second one would write a log without what the first moved."""

    def explain(reason: str) -> str:
        return (
            f"cannot write to {store / FOLDER} ({reason}): make room or make it writable, then run the same "
            "command again; no record is lost"
        )

    with explaining_full_disks(explain):
        make_lockable(store, store / LOCK)
        with filelock.FileLock(store / LOCK):
            yield
