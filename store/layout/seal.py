"""Check that a shard's file is the file that its commit record describes, without reading a row.

Each row is followed by its checksum, so the file of another shard in this file's place passes every check of its rows. Only
the record tells the two files apart: it holds a crc32c over the checksums of all chunks, in order, and over the index.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import IntegrityError
from store.layout.schema import ShardLayout
from store.layout.shard import FileRecord, chunk_ends, crc, plain_index

Fetch = Callable[[Sequence[tuple[int, int]]], Sequence[bytes]]
"""Reads several parts of a file, each given by its offset and its length in bytes."""
FileIdentity = tuple[int, ...]
"""Numbers that differ between any two files of this machine, and that change when a file is written to."""


@dataclass
class Sealed:
    """What is known of a file that is the file of its commit record."""

    identity: FileIdentity
    """The state in which the file was checked."""
    crcs: NDArray[np.uint32]
    """The committed checksums of the chunks, in order."""
    verified: NDArray[np.bool_]
    """Whether this process has read a chunk and compared it with its checksum; one value per chunk."""


def identity_of(status: os.stat_result) -> FileIdentity:
    """Return numbers that change when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def committed_checksums(index: bytes, fetch: Fetch, record: FileRecord, layout: ShardLayout) -> NDArray[Any] | None:
    """Read the checksums of a file's chunks, which `index` locates; None if the file is not the file of the record."""
    ends = chunk_ends(index, record.bytes, layout)
    if ends is None:
        return None
    checksums = b"".join(fetch([(end - layout.CRC_BYTES, layout.CRC_BYTES) for end in ends]))
    return np.frombuffer(checksums, "<u4") if crc(checksums + index) == record.crc32c else None


def stored_index(fetch: Fetch, record: FileRecord, layout: ShardLayout) -> bytes:
    """Read the index at the end of a file that has the recorded size."""
    if record.bytes < layout.index_bytes:
        return b""
    return fetch([(record.bytes - layout.index_bytes, layout.index_bytes)])[0]


def sealed(path: Path, descriptor: int, record: FileRecord, layout: ShardLayout, rows: int, repair: str) -> Sealed:
    """Compare the size and the checksums of an open file with its record.

    The index of an uncompressed file follows from its layout, so the index at the end of such a file is not read.

    Args:
        path: the file, for messages.
        descriptor: the file, open for reading.
        record: the file's commit record.
        layout: the layout of the array.
        rows: how many images the shard holds.
        repair: what the user should do about a damaged file, for messages.

    Raises:
        IntegrityError: the file is not the file of the record, or cannot be read (exit 4).
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
    """Make the error about a file whose checksums differ from its record."""
    return IntegrityError(
        f"{name} is not the file that was committed there (it has other checksums; it may be the file of another shard): "
        f"{repair}"
    )


def opened(path: Path, repair: str) -> int:
    """Open a committed file and return its descriptor. Never waits, whatever lies there.

    Raises IntegrityError (exit 4), with the advice `repair`, if there is no file or it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise IntegrityError(f"expected {path} as committed, found none ({error.strerror}): {repair}") from None
