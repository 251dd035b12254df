"""The commit log: a shard exists if and only if its record does.

A record lies in a file of its own, `commits/<shard>.json`, or, once `compact` has gathered it, on a line of
`commits/compacted.jsonl`. It is in both where a compaction was killed; the line is the older one and counts.
What a later generation of the plan adds has a log of its own, `commits/<generation>/`.
"""

import errno
import hashlib
import json
import os
import re
import tempfile
import weakref
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from configs.atomic import publish_once, sync_directory
from configs.progress import ProgressBar
from store.errors import IntegrityError, NoSpace
from store.shard import PARTIAL, FileRecord, crc

FOLDER = "commits"
COMPACTED = "compacted.jsonl"
LOCK = "commits.lock"
"""Held by whoever moves or removes records; adding and reading them needs no lock."""
SUPERSEDED = "superseded"
"""Why a row has no features whose file has other content by now: the image that it is now has a row of its own."""
_KEPT = 4096
"""Records of the compacted log that stay parsed."""
_DISK = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES}
# What is looked for in a line, instead of parsing it.
_BEGINS = re.compile(
    rb'{"shard":(\d+),"first_row":\d+,"last_row":\d+,"ids_digest":"[^"]*","plan_digest":"([^"]*)","files":{'
)
_FAILURES, _NONE = b'},"failures":{', b'},"failures":{},"telemetry":{'


class CommitRecord(BaseModel):
    """One committed shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    first_row: int
    last_row: int
    """Inclusive."""
    ids_digest: str
    """sha256 over the ids of its rows."""
    plan_digest: str
    """sha256 of the plan that it was written for, fingerprints included."""
    files: dict[str, FileRecord]
    """By array."""
    failures: dict[int, str]
    """Rows whose image could not be encoded, with the reason; they hold NaN."""
    telemetry: dict[str, Any]
    """Times, host, versions: not part of a store's identity."""
    sha256: str = ""
    """Of all fields but this one and telemetry, so that a damaged record is noticed."""

    def sealed(self) -> "CommitRecord":
        """The record with its checksum."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def intact(self) -> bool:
        """Whether the checksum is right."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        content = self.model_dump_json(exclude={"telemetry", "sha256"})
        return hashlib.sha256(content.encode()).hexdigest()


class CommitLog(Mapping[int, CommitRecord]):
    """Committed shards by number, in order.

    A record of the compacted log is read when it is asked for: 156,250 of them, parsed, would take 600 MB.
    """

    def __init__(self, single: Mapping[int, CommitRecord], compacted: "_Compacted") -> None:
        self.single, self._compacted = single, compacted
        self._shards = sorted({*single, *compacted.lines})
        self._read = lru_cache(_KEPT)(compacted.record)
        failures = compacted.failures | {row: why for record in single.values() for row, why in record.failures.items()}
        self.failures: dict[int, str] = dict(sorted(failures.items()))
        """Rows whose image could not be encoded, with the reason; of all records."""
        self.plan_digests = compacted.plan_digests | {record.plan_digest for record in single.values()}
        """The plans that records were written for: one, unless the plan was changed."""

    def __getitem__(self, shard: int) -> CommitRecord:
        """Raises IntegrityError (exit 4) if the record was damaged since the log was opened."""
        return self.single[shard] if shard in self.single else self._read(shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self.single or shard in self._compacted.lines

    def __iter__(self) -> Iterator[int]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


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
    for path, shard in damaged:
        raise _damage(store, path, shard)
    return log


def read_commit(store: Path, shard: int, generation: int = 0) -> CommitRecord | None:
    """The record of one shard, None if it is not committed; looks at no other record, so that it may be asked often.

    Raises IntegrityError (exit 4) if it is damaged.
    """
    folder = log_folder(store, generation)
    path = _single_path(folder, shard)
    while True:
        there = path.exists()  # before the compacted log: records move into that, never out
        compacted = _compacted_log(folder)
        if shard in compacted.lines:
            return compacted.record(shard)
        try:
            record = _single(path) if there else None
        except FileNotFoundError:
            continue  # compacted or withdrawn since it was seen
        if there and (record is None or record.shard != shard):
            raise _damage(store, path, shard)
        if record is None and shard in compacted.lost:
            raise _damage(store, compacted.path, shard)
        return record


def intact_records(store: Path, generation: int = 0) -> CommitLog:
    """What `read_commits` returns, damaged records left out: for looking at a store that is damaged."""
    return _look(log_folder(store, generation))[0]


def damaged_records(store: Path, generation: int = 0) -> list[tuple[Path, int]]:
    """Files that do not hold the record of a shard that they should, with that shard."""
    found = _look(log_folder(store, generation))[1]
    return [(path, int(shard)) for path, shard in found if str(shard).isdecimal()]


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
        lines = _Compacted.open(folder / COMPACTED)
        if not lines.as_written or any(shard not in lines.lines for shard in log):
            shown = ProgressBar(log.values(), "compact", len(log), unit="shards")
            _write(folder, list(log), (record.model_dump_json() for record in shown))
        for path in files:  # what was published since is in none of them
            path.unlink(missing_ok=True)
        sync_directory(folder)
    return len(log)


def withdraw(store: Path, shards: Iterable[int], generation: int = 0) -> None:
    """Take back the commits of some shards, durably: they count as not computed from now on."""
    folder, gone = log_folder(store, generation), set(shards)
    if not folder.is_dir():
        return
    with _moving(store):
        # First the files: were the line to go first, a younger record that it hides would count for a moment.
        for shard in gone:
            _single_path(folder, shard).unlink(missing_ok=True)
        sync_directory(folder)
        lines = _Compacted.open(folder / COMPACTED)
        known = {*lines.lines, *lines.lost}
        if known & gone:
            kept = sorted(lines.lines.keys() - gone)
            _write(folder, sorted(known - gone), (lines.record(shard).model_dump_json() for shard in kept))


def _look(folder: Path) -> tuple[CommitLog, list[tuple[Path, int | str]]]:
    """The intact records, and what is damaged: a file, with the shard that it should be about."""
    while True:
        files = _single_files(folder)  # before the compacted log: records move into that, never out
        compacted = _Compacted.open(folder / COMPACTED)
        try:
            found = {path: _single(path) for path in files if not _is_in(path, compacted.lines)}
        except FileNotFoundError:
            continue  # compacted or withdrawn since it was listed
        single = {r.shard: r for path, r in found.items() if r is not None and path.stem == str(r.shard)}
        damaged: list[tuple[Path, int | str]] = [(path, path.stem) for path in found if not _is_in(path, single)]
        damaged += [(compacted.path, shard) for shard in compacted.lost if shard not in single]
        return CommitLog(single, compacted), damaged


def _single_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard}.json"


def _single_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def _is_in(path: Path, shards: Iterable[int]) -> bool:
    return path.stem.isdecimal() and path.stem == str(int(path.stem)) and int(path.stem) in shards


def _damage(store: Path, path: Path, shard: int | str) -> IntegrityError:
    if path.name == COMPACTED:
        return IntegrityError(
            f"{path} was changed, its record of shard {shard} is damaged or missing: `python -m store repair {store}` "
            "withdraws it, and `make extract` computes that shard again"
        )
    return IntegrityError(
        f"{path} is not the commit record of shard {shard}, or was changed: remove it and run `make extract`, which "
        "computes that shard again"
    )


def _single(path: Path) -> CommitRecord | None:
    """The record in a file of its own; FileNotFoundError if it is gone by now."""
    try:
        return _intact(path.read_bytes())
    except FileNotFoundError:
        if path.is_symlink():  # it leads nowhere, and will not be gone the next time
            return None
        raise
    except IsADirectoryError:
        return None


def _intact(text: bytes) -> CommitRecord | None:
    try:
        record = CommitRecord.model_validate_json(text)
    except ValidationError:
        return None
    return record if record.intact else None


class _Compacted:
    """The file of the compacted log, open: which line is about which shard. Its first line says which shards it is about.

    A line is the JSON of a record. The file is replaced as a whole, never changed.
    """

    def __init__(self, path: Path, file: BinaryIO | None, look: Callable[[bytes], "_Glance | None"]) -> None:
        self.path = path
        self.lines: dict[int, int] = {}
        """The number of the line of each shard whose record is intact, from 0."""
        self.failures: dict[int, str] = {}
        self.plan_digests: set[str] = set()
        self.lost: list[int] = []
        """Shards whose records it should hold and does not."""
        self.as_written = True
        self._ends = array("q")
        """Where the first line, and each after it, ends."""
        if file is not None:
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self._scan(file, look)

    @classmethod
    def open(cls, path: Path) -> "_Compacted":
        """One without lines if there is no such file."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return cls(path, None, _glance)
        with file:
            found = cls(path, file, _glance)
            if not found.as_written:
                file.seek(0)
                found = cls(path, file, _examine)
        return found

    def record(self, shard: int) -> CommitRecord:
        """The record of a shard that has a line."""
        line = self.lines[shard]
        begin, end = self._ends[line], self._ends[line + 1]
        record = _intact(os.pread(self._descriptor, end - begin, begin))
        if record is None or record.shard != shard:
            store = next(folder for folder in self.path.parents if folder.name == FOLDER).parent
            raise IntegrityError(
                f"{self.path} was changed since it was opened, its record of shard {shard} is damaged: "
                f"run `python -m store repair {store}`, which withdraws what is damaged"
            )
        return record

    def _scan(self, file: BinaryIO, look: Callable[[bytes], "_Glance | None"]) -> None:
        title = file.readline()
        self._ends.append(len(title))
        checksum, damaged = 0, 0
        for number, line in enumerate(file):
            self._ends.append(self._ends[-1] + len(line))
            checksum = crc(line, checksum)
            seen = look(line)
            if seen is None:
                damaged += 1
                continue
            shard, plan_digest, failures = seen
            self.lines[shard] = number
            self.plan_digests.add(plan_digest)
            self.failures |= failures
        expected, expected_checksum = _read_title(title)
        self.as_written = expected == self.lines.keys() and expected_checksum == checksum
        if expected is None or (damaged and expected <= self.lines.keys()):
            # The first line is damaged: the lowest shards that the others can be about, gaps among them.
            expected = set(range(max(self.lines, default=-1) + 1 + (damaged or not self.lines)))
        self.lost = sorted(expected - self.lines.keys())


_Glance = tuple[int, str, dict[int, str]]
"""Shard, digest of the plan, failures."""


def _glance(line: bytes) -> _Glance | None:
    """What a line says, where the checksum over all lines vouches for it: a fifth of the price of parsing it."""
    begins = _BEGINS.match(line)
    if begins is None or not line.startswith(_NONE, line.find(_FAILURES)):
        return _examine(line)
    return int(begins[1]), begins[2].decode(errors="replace"), {}


def _examine(line: bytes) -> _Glance | None:
    """What a line says; None if its own checksum is wrong."""
    record = _intact(line)
    return None if record is None else (record.shard, record.plan_digest, record.failures)


def _title(shards: list[int], checksum: int) -> bytes:
    """The first line: the shards in order as ranges, and the crc32c of all other lines; its length is the shards' alone."""
    known = set(shards)
    firsts, lasts = (sorted(s for s in known if s + step not in known) for step in (-1, 1))
    ranges = list(zip(firsts, lasts, strict=True))
    return json.dumps({"shards": ranges, "crc32c": f"{checksum:08x}"}).encode() + b"\n"


def _read_title(line: bytes) -> tuple[set[int] | None, int | None]:
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        title = json.loads(line)
        shards = {shard for first, last in title["shards"] for shard in range(first, last + 1)}
        return shards, int(title["crc32c"], 16)
    return None, None


def _write(folder: Path, shards: list[int], lines: Iterable[str]) -> None:
    """Replace the compacted log: written aside, fsynced, renamed, directory fsynced."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{COMPACTED}.", suffix=PARTIAL, dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(_title(shards, 0))
            checksum = 0
            for line in lines:
                data = line.encode() + b"\n"
                checksum = crc(data, checksum)
                file.write(data)
            file.seek(0)
            file.write(_title(shards, checksum))
            file.flush()
            os.fsync(descriptor)
        Path(aside).replace(folder / COMPACTED)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_directory(folder)


def _compacted_log(folder: Path) -> _Compacted:
    """The compacted log, read again only when it was replaced: asked for by every commit."""
    path = folder / COMPACTED
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _Compacted(path, None, _glance)
    return _cached(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(8)
def _cached(path: Path, _identity: tuple[int, ...]) -> _Compacted:
    return _Compacted.open(path)


@contextmanager
def _moving(store: Path) -> Generator[None, None, None]:
    """One at a time moves or removes records: two would each write a log without what the other had moved."""
    try:
        with filelock.FileLock(store / LOCK):
            yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise NoSpace(
            f"cannot write to {store / FOLDER} ({error.strerror}): make room or make it writable, then run the same "
            "command again; no record is lost"
        ) from None
