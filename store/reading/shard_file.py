"""Committed shard files that are open for reading: memory-mapped, read at positions, or read through zarr."""

import mmap
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from store.errors import IntegrityError
from store.layout.schema import ShardLayout, StoredDtype, holds_fill
from store.layout.seal import FileIdentity, Sealed, identity_of, opened, sealed
from store.layout.shard import FileRecord, crc
from store.reading.opening import in_one_line

Verify = Literal["never", "first-read", "always"]
"""When a row's checksum is compared: `first-read` is the first time that this process reads the row."""


class ShardFile(ABC):
    """The rows of one shard of one array."""

    rows: int

    @abstractmethod
    def read(self, index: int, out: NDArray[Any]) -> None:
        """Copy the row at `index` in this shard into `out`; IntegrityError if the row's chunk is damaged."""

    @abstractmethod
    def will_need(self, index: int) -> None:
        """Let the operating system fetch the row at `index` ahead."""

    def require_uncut(self) -> None:  # noqa: B027 (only a map must know before it is read)
        """Raise IntegrityError if the file is shorter than when it was opened."""


class ZarrShard(ShardFile):
    """A shard that cannot be mapped because it is compressed or remote, read through zarr.

    A chunk that is missing reads as fill, which no committed row holds.
    """

    def __init__(self, array: zarr.Array[Any], rows: range, dtype: StoredDtype, repair: str) -> None:
        self.rows = len(rows)
        self._array, self._first, self._repair = array, rows.start, repair
        self._dtype: StoredDtype = dtype

    def read(self, index: int, out: NDArray[Any]) -> None:
        """Copy a row through zarr, which compares every chunk's checksum each time."""
        row = self._first + index
        try:
            np.copyto(out, np.asarray(self._array[row]))
        except (ValueError, KeyError, IndexError, TypeError, OSError, RuntimeError) as error:
            raise IntegrityError(
                f"row {row} of {self._array.store_path} is damaged ({in_one_line(error)}): {self._repair}"
            ) from None
        if holds_fill(out, self._dtype):
            raise IntegrityError(f"expected row {row} of {self._array.store_path}, it is missing: {self._repair}")

    def will_need(self, index: int) -> None:
        """No-op: zarr offers no read-ahead."""


class LocalZarrShard(ZarrShard):
    """A shard in a folder, read through zarr.

    Zarr opens the file anew for each row, so before each row the file is compared with the file that was checked.
    """

    def __init__(
        self, array: zarr.Array[Any], path: Path, layout: ShardLayout, rows: range, record: FileRecord, repair: str
    ) -> None:
        super().__init__(array, rows, layout.spec.dtype, repair)
        self._path, self._layout, self._record = path, layout, record
        self._identity: FileIdentity | None = None
        self._require_recorded_file()

    def read(self, index: int, out: NDArray[Any]) -> None:
        """Copy a row through zarr; IntegrityError if the file is not the file of its record."""
        self._require_recorded_file()
        super().read(index, out)

    def _require_recorded_file(self) -> None:
        descriptor = opened(self._path, self._repair)
        try:
            if self._identity != identity_of(os.fstat(descriptor)):
                checked = sealed(self._path, descriptor, self._record, self._layout, self.rows, self._repair)
                self._identity = checked.identity
        finally:
            os.close(descriptor)


class StoredShard(ShardFile):
    """A shard whose rows lie at a fixed stride in its file; each chunk's checksum is compared as `verify` says."""

    def __init__(
        self, path: Path, layout: ShardLayout, rows: int, record: FileRecord, repair: str, checked: Sealed | None,
        verify: Verify,
    ) -> None:  # fmt: skip
        """Open the file and compare it with its record.

        Args:
            path: The file.
            layout: Where the bytes of the shard lie.
            rows: How many rows the shard has.
            record: The commit log's record of the file.
            repair: What a user can do if the file is damaged, for messages.
            checked: The result of comparing the file when this process opened it before, if it has.
            verify: When checksums of rows are compared.
        """
        self._path, self._layout, self._repair, self.rows = path, layout, repair, rows
        self._verify, self._size = verify, record.bytes
        descriptor = opened(path, repair)
        try:
            if checked is None or checked.identity != identity_of(os.fstat(descriptor)):
                self._announce(descriptor)
                # Reading a map of a truncated file is a SIGBUS, not an error: sizes are compared before mapping.
                checked = sealed(path, descriptor, record, layout, rows, repair)
            self.sealed = checked
            self._open(descriptor, record.bytes)
        finally:
            os.close(descriptor)

    def _announce(self, descriptor: int) -> None:
        """Let the operating system fetch the parts of the file that are read before any row."""

    @abstractmethod
    def _open(self, descriptor: int, size: int) -> None:
        """Prepare reading from a descriptor that is closed afterwards."""

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the chunk that holds a row, and the offset of that chunk in the file."""
        chunk = index // self._layout.chunk_images
        return chunk, chunk * self._layout.stride

    def _must_be_checked(self, chunk: int) -> bool:
        return self._verify != "never" and (self._verify == "always" or not self.sealed.verified[chunk])

    def _check(self, chunk: int, index: int, rows: NDArray[Any]) -> None:
        """Compare a chunk with the checksum that it was committed with; the checksum behind it may have changed since."""
        if crc(rows) != self.sealed.crcs[chunk]:
            raise IntegrityError(f"{self._path} is damaged (checksum of row {index}): {self._repair}")
        self.sealed.verified[chunk] = True


class MappedShard(StoredShard):
    """A memory-mapped shard: the fastest way where the file is, or will be, in the page cache."""

    def _open(self, descriptor: int, size: int) -> None:
        spec = self._layout.spec
        self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        self._per_chunk = self._layout.chunk_images
        chunk = np.dtype([("rows", spec.storage, (self._per_chunk, *spec.shape)), ("crc", "<u4")])
        self._rows = np.frombuffer(self._map, chunk, count=len(self.sealed.crcs))["rows"]

    def read(self, index: int, out: NDArray[Any]) -> None:
        """Copy a row from the map."""
        chunk, inside = divmod(index, self._per_chunk)
        if self._must_be_checked(chunk):
            self._check(chunk, index, self._rows[chunk])
        np.copyto(out, self._rows[chunk, inside])

    def require_uncut(self) -> None:
        """Compare the file's size; a file that is cut between this look and a read still causes a SIGBUS."""
        size = self._map.size()
        if size != self._size:
            raise IntegrityError(
                f"expected {self._path} with {self._size:,} bytes as when it was opened, found {size:,} bytes: {self._repair}"
            )

    def will_need(self, index: int) -> None:
        """Advise the kernel of the whole pages around the row's chunk."""
        _, begin = self._locate(index)
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin + self._layout.stride - page)


class PositionalShard(StoredShard):
    """A shard read with `preadv`: on network and cold disks, many reads side by side beat page faults one after another."""

    def _announce(self, descriptor: int) -> None:
        """Announce all checksums at once: read one after another, each would wait for the disk."""
        for chunk in range(self._layout.written_chunks(self.rows)):
            end = (chunk + 1) * self._layout.stride
            os.posix_fadvise(descriptor, end - self._layout.CRC_BYTES, self._layout.CRC_BYTES, os.POSIX_FADV_WILLNEED)

    def _open(self, descriptor: int, size: int) -> None:
        self._descriptor = os.dup(descriptor)

    def __del__(self) -> None:
        if "_descriptor" in vars(self):  # absent where opening failed
            os.close(self._descriptor)

    def read(self, index: int, out: NDArray[Any]) -> None:
        """Read a row's chunk with one system call."""
        chunk, begin = self._locate(index)
        spec, images, expected = self._layout.spec, self._layout.chunk_images, self._layout.chunk_bytes
        # A chunk of a single row is read into `out` itself; from a chunk of many rows, the row is copied.
        rows = out[None] if images == 1 else np.empty((images, *spec.shape), spec.storage)
        try:
            count = os.preadv(self._descriptor, [rows.reshape(-1).view(np.uint8).data], begin)
        except OSError as error:
            raise IntegrityError(
                f"row {index} of {self._path} cannot be read ({error.strerror}): {self._repair}"
            ) from None
        if count != expected:
            raise IntegrityError(
                f"expected {expected:,} bytes of row {index} in {self._path}, got {count:,}: {self._repair}"
            )
        if self._must_be_checked(chunk):
            self._check(chunk, index, rows)
        if images > 1:
            np.copyto(out, rows[index % images])

    def will_need(self, index: int) -> None:
        """Advise the kernel of the bytes of the row's chunk."""
        _, begin = self._locate(index)
        os.posix_fadvise(self._descriptor, begin, self._layout.stride, os.POSIX_FADV_WILLNEED)
