"""The commit log: a shard exists if and only if its record does.

A record lies in its own file, `commits/<shard>.json`, or, once `compact` has gathered the records, on a line of
`commits/compacted.jsonl`. After a killed compaction a record may lie in both; then the line is the older one, and it counts.
Each later generation of the plan has its own log, `commits/<generation>/`, for what it adds.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import filelock

from configs.errors import EXTRACT
from configs.files.atomic import publish_once, sync_directory
from configs.progress import ProgressBar
from store.errors import IntegrityError
from store.files.disk import Unreadable, content, explaining_full_disks, listed, make_lockable, move_out, numbered
from store.files.ranges import joined, ranges_of, without
from store.layout.record import CommitRecord, intact_record
from store.log.compacted import COMPACTED, FOLDER, CommitLog, Compacted, write_compacted

LOCK = "commits.lock"
"""The lock file that a process holds while it moves or removes records; adding and reading records needs no lock."""
SUPERSEDED = "superseded"
"""The reason of a failed row whose image file has changed since; the file's new content has another row."""


def log_folder(store: Path, generation: int) -> Path:
    """Return the folder of a generation's log."""
    return store / FOLDER / str(generation) if generation else store / FOLDER


def publish(store: Path, record: CommitRecord, generation: int = 0) -> bool:
    """Commit a shard. Returns False if another commit of the shard was published before: the first wins."""
    folder = log_folder(store, generation)
    if record.shard in _compacted_log(folder).lines:
        return False
    text = record.sealed().model_dump_json(indent=1) + "\n"
    published = publish_once(_single_path(folder, record.shard), text)
    # Since the check above, a compaction may have moved an older record of this shard to its file: the older record counts.
    compacted = _compacted_log(folder)
    if published and record.shard in compacted.lines:
        return compacted.record(record.shard) == CommitRecord.model_validate_json(text)
    return published


def read_commits(store: Path, generation: int = 0) -> CommitLog:
    """Read the records of all committed shards, by shard. Raises IntegrityError (exit 4) if a record is damaged."""
    log, damaged = _look(log_folder(store, generation))
    for path, shards in damaged:
        raise _damage(store, path, shards.start)
    return log


def read_commit(store: Path, shard: int, generation: int = 0) -> CommitRecord | None:
    """Read the record of one shard; None if the shard is not committed.

    Reads no other record, so it may be called often. Raises IntegrityError (exit 4) if the record is damaged.
    """
    folder = log_folder(store, generation)
    path = _single_path(folder, shard)
    while True:
        # Look for the single file before the compacted log: records move into the compacted log, never out of it.
        has_file = path.exists() or path.is_symlink()
        compacted = _compacted_log(folder)
        if shard in compacted.lines:
            return compacted.record(shard)
        try:
            record = _single(path) if has_file else None
        except FileNotFoundError:
            continue  # the record was compacted or withdrawn in between
        if has_file and (record is None or record.shard != shard):
            raise _damage(store, path, shard)
        if record is None and any(shard in lost for lost in compacted.lost):
            raise _damage(store, compacted.path, shard)
        return record


def intact_records(store: Path, generation: int = 0) -> CommitLog:
    """Read the records of all committed shards without the damaged records, to look at a store that is damaged."""
    try:
        return _look(log_folder(store, generation))[0]
    except Unreadable:  # the log folder itself
        return CommitLog({}, Compacted(log_folder(store, generation) / COMPACTED))


def damaged_records(store: Path, generation: int = 0, n_shards: int | None = None) -> list[tuple[Path, int]]:
    """List the files that lack the record of a shard that they should hold, each with the shard.

    A damaged compacted log may claim to hold shards beyond `n_shards`; only the first of these is listed.
    """
    lacking: list[tuple[Path, int]] = []
    for path, shards in _look(log_folder(store, generation))[1]:
        named = shards if n_shards is None else shards[: max(0, n_shards - shards.start) + 1]
        lacking += [(path, shard) for shard in named]
    return lacking


def compact(store: Path, generation: int = 0) -> int:
    """Move all records of a generation into one file, and return how many records the file holds.

    Opening the store then reads this file instead of one file per shard. Workers and readers may continue meanwhile, and a
    compaction that is killed loses nothing.

    Raises:
        IntegrityError: a record is damaged (exit 4).
        NoSpace: the disk is full or may not be written to (exit 7).
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
        for path in files:  # records that were published since the listing are not among these files
            path.unlink(missing_ok=True)
        sync_directory(folder)
    return len(log)


def withdraw(store: Path, shards: Iterable[int], generation: int = 0, n_shards: int | None = None) -> None:
    """Take back the commits of some shards, durably, so that these shards count as not computed.

    Args:
        store: the store.
        shards: the shards to withdraw.
        generation: the generation whose log holds the commits.
        n_shards: if given, every shard from this number on that a damaged compacted log claims to hold is withdrawn too.
    """
    folder, gone = log_folder(store, generation), set(shards)
    if not folder.is_dir():
        return
    with _moving(store):
        # Remove the single files first: without the line, the younger record that it hides would count for a moment.
        for shard in gone:
            path = _single_path(folder, shard)
            if path.is_dir() and not path.is_symlink():
                move_out(store, path)
            path.unlink(missing_ok=True)
        sync_directory(folder)
        lines = Compacted.open(folder / COMPACTED)
        lost = without(lines.lost, gone)
        if n_shards is not None:
            lost = [numbers[: max(0, n_shards - numbers.start)] for numbers in lost if numbers.start < n_shards]
        if lines.lines.keys() & gone or lost != lines.lost:
            kept = sorted(lines.lines.keys() - gone)
            known = sorted([*ranges_of(kept), *lost], key=lambda numbers: numbers.start)
            write_compacted(folder, joined(known), (lines.record(shard).model_dump_json() for shard in kept))


def _look(folder: Path) -> tuple[CommitLog, list[tuple[Path, range]]]:
    """Read the intact records, and list each damaged file with the shards whose records it should hold."""
    while True:
        files = _single_files(folder)  # before the compacted log, because records move into it and never out of it
        compacted = Compacted.open(folder / COMPACTED)
        try:
            read = {shard: _single(path) for path in files if (shard := _shard(path)) not in compacted.lines}
        except FileNotFoundError:
            continue  # a record was compacted or withdrawn since the files were listed
        single = {shard: record for shard, record in read.items() if record is not None and record.shard == shard}
        damaged = [(_single_path(folder, shard), range(shard, shard + 1)) for shard in read if shard not in single]
        damaged += [(compacted.path, lost) for lost in without(compacted.lost, single)]
        return CommitLog(single, compacted), damaged


def _single_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard}.json"


def _single_files(folder: Path) -> list[Path]:
    """List the files that have the name of a record. For files with other names see `store.care.strays`."""
    return [path for path in listed(folder) if numbered(path.name) is not None]


def _shard(path: Path) -> int:
    number = numbered(path.name)
    assert number is not None, path
    return number


def _damage(store: Path, path: Path, shard: int) -> IntegrityError:
    if path.name == COMPACTED:
        return IntegrityError(
            f"{path} was changed, its record of shard {shard} is damaged or missing: `python -m store repair {store}` "
            f"withdraws it, and {EXTRACT} computes that shard again"
        )
    return IntegrityError(
        f"{path} is not the commit record of shard {shard}, or was changed: remove it, or let "
        f"`python -m store repair {store}` do so, and run {EXTRACT}, which computes that shard again"
    )


def _single(path: Path) -> CommitRecord | None:
    """Read the record in a single file; None if it holds no intact record. Raises FileNotFoundError if the file is gone."""
    try:
        return intact_record(content(path))
    except Unreadable:
        return None


def _compacted_log(folder: Path) -> Compacted:
    """Open the compacted log. Every commit does this, so the file is read again only if it was replaced."""
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
    """Let only one process at a time move or remove records: a second would lose the records that the first moves."""

    def explain(reason: str) -> str:
        return (
            f"cannot write to {store / FOLDER} ({reason}): make room or make it writable, then run the same "
            "command again; no record is lost"
        )

    with explaining_full_disks(explain):
        make_lockable(store, store / LOCK)
        with filelock.FileLock(store / LOCK):
            yield
