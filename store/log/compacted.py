"""`commits/compacted.jsonl`: the records of many shards in one file, which is only ever replaced as a whole.

The first line lists the shards and holds a checksum of the other lines. Each other line is the JSON of one shard's record.
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
"""Most records of the compacted log that are kept in memory after parsing."""
_MOST = 10**18
"""An upper bound of shard numbers, to refuse a damaged first line."""
# `_glance` searches a line for these patterns instead of parsing the line.
_BEGINS = re.compile(
    rb'{"shard":(\d{1,18}),"first_row":\d+,"last_row":\d+,"ids_digest":"[^"]*","plan_digest":"([^"]*)","files":{'
)
_FAILURES, _NONE = b'},"failures":{', b'},"failures":{},"telemetry":{'


def store_of(log: Path) -> Path:
    """Return the store that a log folder, or a file in a log folder, belongs to."""
    return next(folder for folder in (log, *log.parents) if folder.name == FOLDER).parent


class Compacted:
    """An open compacted log: it knows which line holds the record of which shard, and reads a record when asked."""

    def __init__(
        self, path: Path, file: BinaryIO | None = None, look: Callable[[bytes], "_Glance | None"] | None = None
    ) -> None:
        """Scan the lines of `file` with `look`, which is `_glance` or `_examine`; without a file the log has no lines."""
        self.path = path
        self.lines: dict[int, int] = {}
        """By shard whose record is intact, the number of its line; 0 is the line after the first line of the file."""
        self.failures: dict[int, str] = {}
        """Rows whose image could not be encoded, with the reason; of all intact records."""
        self.plan_digests: set[str] = set()
        """Digests of the plans that the intact records were written for."""
        self.lost: list[range] = []
        """Ascending ranges of the shards whose records the file should hold and does not.

        Ranges and not numbers, because a damaged file may claim to hold any number of shards.
        """
        self.as_written = True
        """Whether the whole file is as it was written."""
        self._ends = array("q")
        """Offset in the file, in bytes, of the end of the first line and of every line after it."""
        if file is not None and look is not None:
            self._descriptor = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self._scan(file, look)

    @classmethod
    def open(cls, path: Path) -> "Compacted":
        """Open the compacted log at `path`.

        If there is no file, the log has no lines. If the file cannot be read, the log counts shard 0 as lost, so that the
        damage is noticed.
        """
        try:
            with open(path, "rb", opener=without_waiting) as file:
                log = cls(path, file, _glance)
                if not log.as_written:  # only then is every line parsed and compared with its own checksum
                    file.seek(0)
                    log = cls(path, file, _examine)
        except FileNotFoundError:
            return cls._unreadable(path) if path.is_symlink() else cls(path)
        except OSError:
            return cls._unreadable(path)
        return log

    @classmethod
    def _unreadable(cls, path: Path) -> "Compacted":
        log = cls(path)
        log.as_written, log.lost = False, [range(1)]
        return log

    def record(self, shard: int) -> CommitRecord:
        """Read the record of a shard in `lines`. Raises IntegrityError (exit 4) if the file has changed since it was opened."""
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
            glance = look(line)
            if glance is None:
                damaged += 1
                continue
            shard, plan_digest, failures = glance
            self.lines[shard] = number
            self.plan_digests.add(plan_digest)
            self.failures |= failures
        expected, expected_checksum = _read_title(title)
        self.as_written = expected == ranges_of(self.lines) and expected_checksum == checksum
        if self.as_written:
            return
        if expected is None or (damaged and not without(expected, self.lines)):
            # The first line is damaged. Assume that the other lines hold the lowest shards that they can, gaps included.
            expected = [range(max(self.lines, default=-1) + 1 + (damaged or not self.lines))]
        self.lost = without(expected, self.lines)


_Glance = tuple[int, str, dict[int, str]]
"""What a scan keeps of a line: the shard, the digest of its plan, and its failures."""


def _glance(line: bytes) -> _Glance | None:
    """Read a line without parsing it, in a fifth of the time. Only the checksum over all lines shows whether it is intact."""
    begins = _BEGINS.match(line)
    if begins is None or not line.startswith(_NONE, line.find(_FAILURES)):
        return _examine(line)
    return int(begins[1]), begins[2].decode(errors="replace"), {}


def _examine(line: bytes) -> _Glance | None:
    """Parse a line; None if its record's own checksum is wrong."""
    record = intact_record(line)
    return None if record is None else (record.shard, record.plan_digest, record.failures)


def _title(shards: Sequence[range], checksum: int) -> bytes:
    """Make the first line: the shards as ascending ranges, and the crc32c of all other lines.

    The line has the same length for any checksum, so that `write_compacted` can write it again when the checksum is known.
    """
    ranges = [(numbers.start, numbers.stop - 1) for numbers in shards]
    return json.dumps({"shards": ranges, "crc32c": f"{checksum:08x}"}).encode() + b"\n"


def _read_title(line: bytes) -> tuple[list[range] | None, int | None]:
    """Read the shards and the checksum in a first line; None for both if the line is damaged."""
    with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        title: Any = json.loads(line)
        shards = [range(first, last + 1) for first, last in title["shards"]]
        ends = [end for numbers in shards for end in (numbers.start, numbers.stop)]
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
    """The records of one generation, by shard in ascending order.

    A record of the compacted log is parsed only when it is asked for: 156,250 parsed records would take 600 MB.
    """

    def __init__(self, single: Mapping[int, CommitRecord], compacted: Compacted) -> None:
        self.single, self._compacted = single, compacted
        self._shards = sorted({*single, *compacted.lines})
        self._read = lru_cache(_KEPT)(compacted.record)
        failures = compacted.failures | {row: why for record in single.values() for row, why in record.failures.items()}
        self.failures: dict[int, str] = dict(sorted(failures.items()))
        """Rows whose image could not be encoded, with the reason; of all records."""
        self.plan_digests = compacted.plan_digests | {record.plan_digest for record in single.values()}
        """Digests of the plans that the records were written for: one digest, unless the plan was changed."""

    def __getitem__(self, shard: int) -> CommitRecord:
        """Return the record of a shard. Raises IntegrityError (exit 4) if it was damaged since the log was opened."""
        return self.single[shard] if shard in self.single else self._read(shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self.single or shard in self._compacted.lines

    def __iter__(self) -> Iterator[int]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)
