"""Is a file the one that its commit record describes? Told from its index and its chunks' checksums, without reading a row.

Each row has its checksum behind it, so a file in another's place is whole by itself. Only the record tells the two apart:
it has the crc32c of all chunks' checksums, in order, and of the index.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import IntegrityError
from store.layout.schema import Layout
from store.layout.shard import FileRecord, chunk_ends, crc, plain_index

Fetch = Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]
"""Reads parts of a file, each given by its offset and its length in bytes."""
Identity = tuple[int, ...]
"""Tells a file, in its present state, from any other one of this machine."""


@dataclass
class Sealed:
    """A file that was found to be the one of its record."""

    identity: Identity
    crcs: NDArray[np.uint32]
    """The checksums of its chunks, in order, as they were committed."""
    verified: NDArray[np.bool_]
    """Chunks that this process has read and found to have their checksum."""


def identity_of(status: os.stat_result) -> Identity:
    """What changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def committed_checksums(index: bytes, fetch: Fetch, record: FileRecord, layout: Layout) -> NDArray[Any] | None:
    """The checksums of a file's chunks by its `index`; None if the file is not the one of the record."""
    ends = chunk_ends(index, record.bytes, layout)
    if ends is None:
        return None
    checksums = b"".join(fetch([(end - layout.CRC_BYTES, layout.CRC_BYTES) for end in ends]))
    return np.frombuffer(checksums, "<u4") if crc(checksums + index) == record.crc32c else None


def stored_index(fetch: Fetch, record: FileRecord, layout: Layout) -> bytes:
    """The index at the end of a file of the recorded size."""
    if record.bytes < layout.index_bytes:
        return b""
    return fetch([(record.bytes - layout.index_bytes, layout.index_bytes)])[0]


def sealed(path: Path, descriptor: int, record: FileRecord, layout: Layout, rows: int, repair: str) -> Sealed:
    """Compare an open file with its record: the size, and the checksums of all chunks.

    The index of an uncompressed file follows from its layout, so the one at the end of the file is not needed. Raises
    IntegrityError (exit 4), naming the file and `repair`.
    """
    status = os.fstat(descriptor)
    if status.st_size != record.bytes:
        raise IntegrityError(
            f"expected {path} with {record.bytes:,} bytes as committed, found {status.st_size:,} bytes: {repair}"
        )

    def fetch(parts: Sequence[tuple[int, int]]) -> list[bytes]:
        return [os.pread(descriptor, length, offset) for offset, length in parts]

    try:
        plain = record.codec == "none"
        index = plain_index(layout, rows) if plain else stored_index(fetch, record, layout)
        crcs = committed_checksums(index, fetch, record, layout)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}): {repair}") from None
    if crcs is None:
        raise other_file(path, repair)
    return Sealed(identity_of(status), crcs, np.zeros(len(crcs), bool))


def other_file(name: object, repair: str) -> IntegrityError:
    """The error about a file whose checksums are not those of its record."""
    return IntegrityError(
        f"{name} is not the file that was committed there (the checksums in it are others, as in the file of another "
        f"shard): {repair}"
    )


def opened(path: Path, repair: str) -> int:
    """A descriptor to read a committed file; never waits, whatever lies there. IntegrityError (exit 4) if that fails."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise IntegrityError(f"expected {path} as committed, found none ({error.strerror}): {repair}") from None
