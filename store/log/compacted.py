"""`commits/compacted.jsonl`: the records of many shards in one file, which is replaced as a whole and never changed.

Its first line says which shards the others are about, each of which is the JSON of a record.
"""

import json
import os
import re
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from configs.files.atomic import replacing
from store.errors import IntegrityError
from store.files.disk import make_way, without_waiting
from store.files.ranges import ranges_of, without
from store.layout.record import CommitRecord, intact_record
from store.layout.shard import crc

FOLDER = "commits"
COMPACTED = "compacted.jsonl"
_KEPT = 4096
"""Records of the compacted log that stay parsed."""
_MOST = 10**18
"""No shard has a number as large."""
# What is looked for in a line, instead of parsing it.
_BEGINS = re.compile(
    rb'{"shard":(\d{1,18}),"first_row":\d+,"last_row":\d+,"ids_digest":"[^"]*","plan_digest":"([^"]*)","files":{'
)
_FAILURES, _NONE = b'},"failures":{', b'},"failures":{},"telemetry":{'


def store_of(log: Path) -> Path:
    """The store that a log folder, or a file in it, belongs to."""
    return next(folder for folder in (log, *log.parents) if folder.name == FOLDER).parent


class Compacted:
    """The file of the compacted log, open: which line is about which shard."""

    def __init__(
        self, path: Path, file: BinaryIO | None = None, look: Callable[[bytes], "_Glance | None"] | None = None
    ) -> None:
        """Without lines where no file is given; `look` reads a line."""
        self.path = path
        self.lines: dict[int, int] = {}
        """The number of the line of each shard whose record is intact, from 0."""
        self.failures: dict[int, str] = {}
        self.plan_digests: set[str] = set()
        self.lost: list[range] = []
        """Shards whose records it should hold and does not, ascending; what it claims to hold may be without measure."""
        self.as_written = True
        self._ends = array("q")
        """Where the first line, and each after it, ends."""
        if file is not None and look is not None:
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self._scan(file, look)

    @classmethod
    def open(cls, path: Path) -> "Compacted":
        """One without lines if there is no such file; one that lost the record of shard 0 if it cannot be read."""
        try:
            with open(path, "rb", opener=without_waiting) as file:
                found = cls(path, file, _glance)
                if not found.as_written:
                    file.seek(0)
                    found = cls(path, file, _examine)
        except FileNotFoundError:
            return cls._unreadable(path) if path.is_symlink() else cls(path)
        except OSError:
            return cls._unreadable(path)
        return found

    @classmethod
    def _unreadable(cls, path: Path) -> "Compacted":
        found = cls(path)
        found.as_written, found.lost = False, [range(1)]
        return found

    def record(self, shard: int) -> CommitRecord:
        """The record of a shard that has a line."""
        line = self.lines[shard]
        begin, end = self._ends[line], self._ends[line + 1]
        record = intact_record(os.pread(self._descriptor, end - begin, begin))
        if record is None or record.shard != shard:
            raise IntegrityError(
                f"{self.path} was changed since it was opened, its record of shard {shard} is damaged: "
                f"run `python -m store repair {store_of(self.path)}`, which withdraws what is damaged"
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
        self.as_written = expected == ranges_of(self.lines) and expected_checksum == checksum
        if self.as_written:
            return
        if expected is None or (damaged and not without(expected, self.lines)):
            # The first line is damaged: the lowest shards that the others can be about, gaps among them.
            expected = [range(max(self.lines, default=-1) + 1 + (damaged or not self.lines))]
        self.lost = without(expected, self.lines)


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
    record = intact_record(line)
    return None if record is None else (record.shard, record.plan_digest, record.failures)


def _title(shards: Sequence[range], checksum: int) -> bytes:
    """The first line: the shards in order as ranges, and the crc32c of all other lines; its length is the shards' alone."""
    ranges = [(one.start, one.stop - 1) for one in shards]
    return json.dumps({"shards": ranges, "crc32c": f"{checksum:08x}"}).encode() + b"\n"


def _read_title(line: bytes) -> tuple[list[range] | None, int | None]:
    """The shards and the checksum that a first line names; None where it names none that can be."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        title: Any = json.loads(line)
        shards = [range(first, last + 1) for first, last in title["shards"]]
        ends = [end for one in shards for end in (one.start, one.stop)]
        if ends == sorted(set(ends)) and all(0 <= end <= _MOST for end in ends):
            return shards, int(title["crc32c"], 16)
    return None, None


def write_compacted(folder: Path, shards: Sequence[range], lines: Iterable[str]) -> None:
    """Replace the compacted log in a log folder, durably.

    Args:
        folder: the log folder of a generation.
        shards: the shards that the lines are about, as ascending ranges.
        lines: the JSON of each shard's record, in order.

    """
    make_way(store_of(folder), folder / COMPACTED)
    with replacing(folder / COMPACTED) as file:
        file.write(_title(shards, 0))
        checksum = 0
        for line in lines:
            data = line.encode() + b"\n"
            checksum = crc(data, checksum)
            file.write(data)
        file.seek(0)
        file.write(_title(shards, checksum))


class CommitLog(Mapping[int, CommitRecord]):
    """Committed shards by number, in order.

    A record of the compacted log is read when it is asked for: 156,250 of them, parsed, would take 600 MB.
    """

    def __init__(self, single: Mapping[int, CommitRecord], compacted: Compacted) -> None:
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
