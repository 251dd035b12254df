"""One committed file of one array, open for reading: mapped, or read at positions where a map would be slow."""

import mmap
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from store.errors import IntegrityError
from store.layout.schema import Dtype, Layout, holds_fill
from store.layout.seal import Identity, Sealed, identity_of, opened, sealed
from store.layout.shard import FileRecord, crc

Verify = Literal["never", "first-read", "always"]
"""When a row's checksum is compared: `first-read` is the first time that this process reads it."""


class ShardFile(ABC):
    """Rows of one shard of one array."""

    rows: int

    @abstractmethod
    def read(self, place: int, out: NDArray[Any]) -> None:
        """Copy the row at `place` in this shard; IntegrityError if its chunk is damaged."""

    @abstractmethod
    def will_need(self, place: int) -> None:
        """Let the operating system fetch a row ahead."""

    def require_uncut(self) -> None:  # noqa: B027 (only a map must know before it is read)
        """Raise IntegrityError if the file is shorter than when it was opened."""


class ZarrShard(ShardFile):
    """What cannot be mapped: compressed, or remote. A chunk that is not there reads as fill, which no row ever holds."""

    def __init__(self, array: zarr.Array[Any], rows: range, dtype: Dtype, repair: str) -> None:
        self.rows = len(rows)
        self._array, self._first, self._repair = array, rows.start, repair
        self._dtype: Dtype = dtype

    def read(self, place: int, out: NDArray[Any]) -> None:
        """Through zarr, which compares every chunk's checksum each time."""
        row = self._first + place
        try:
            np.copyto(out, np.asarray(self._array[row]))
        except (ValueError, KeyError, IndexError, TypeError, OSError, RuntimeError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise IntegrityError(f"row {row} of {self._array.store_path} is damaged ({said}): {self._repair}") from None
        if holds_fill(out, self._dtype):
            raise IntegrityError(f"expected row {row} of {self._array.store_path}, it is missing: {self._repair}")

    def will_need(self, place: int) -> None:
        """No-op: zarr offers no read-ahead."""


class LocalZarrShard(ZarrShard):
    """A file in a folder, read through zarr. What zarr opens with each row is compared with what was opened before."""

    def __init__(
        self, array: zarr.Array[Any], path: Path, layout: Layout, rows: range, record: FileRecord, repair: str
    ) -> None:
        super().__init__(array, rows, layout.spec.dtype, repair)
        self._path, self._layout, self._record = path, layout, record
        self._identity: Identity | None = None
        self._compare()

    def read(self, place: int, out: NDArray[Any]) -> None:
        """Through zarr, if the file is the one of its record."""
        self._compare()
        super().read(place, out)

    def _compare(self) -> None:
        descriptor = opened(self._path, self._repair)
        try:
            if self._identity != identity_of(os.fstat(descriptor)):
                found = sealed(self._path, descriptor, self._record, self._layout, self.rows, self._repair)
                self._identity = found.identity
        finally:
            os.close(descriptor)


class StoredShard(ShardFile):
    """A file with rows at a fixed stride; each chunk's checksum is verified as `verify` says."""

    def __init__(
        self, path: Path, layout: Layout, rows: int, record: FileRecord, repair: str, seen: Sealed | None,
        verify: Verify,
    ) -> None:  # fmt: skip
        """`seen` is what this process found when it opened the file before, if it has."""
        self._path, self._layout, self._repair, self.rows = path, layout, repair, rows
        self._verify, self._size = verify, record.bytes
        descriptor = opened(path, repair)
        try:
            if seen is None or seen.identity != identity_of(os.fstat(descriptor)):
                self._announce(descriptor)
                # A map of a truncated file is a SIGBUS, not an error: sizes are compared before mapping.
                seen = sealed(path, descriptor, record, layout, rows, repair)
            self.sealed = seen
            self._open(descriptor, record.bytes)
        finally:
            os.close(descriptor)

    def _announce(self, descriptor: int) -> None:
        """Let the operating system fetch what is read of a file before any row."""

    @abstractmethod
    def _open(self, descriptor: int, size: int) -> None:
        """Take what is needed from a descriptor that is closed afterwards."""

    def _at(self, place: int) -> tuple[int, int]:
        """The chunk that a row is in, and where that chunk begins in the file."""
        chunk = place // self._layout.chunk_images
        return chunk, chunk * self._layout.stride

    def _unchecked(self, chunk: int) -> bool:
        return self._verify != "never" and (self._verify == "always" or not self.sealed.verified[chunk])

    def _check(self, chunk: int, place: int, rows: NDArray[Any]) -> None:
        """Compare a chunk with the checksum that it was committed with, which may not be the one behind it by now."""
        if crc(rows) != self.sealed.crcs[chunk]:
            raise IntegrityError(f"{self._path} is damaged (checksum of row {place}): {self._repair}")
        self.sealed.verified[chunk] = True


class MappedShard(StoredShard):
    """Memory-mapped: the fastest where the file is, or will be, in the page cache."""

    def _open(self, descriptor: int, size: int) -> None:
        spec = self._layout.spec
        self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        self._per_chunk = self._layout.chunk_images
        chunk = np.dtype([("rows", spec.storage, (self._per_chunk, *spec.shape)), ("crc", "<u4")])
        self._rows = np.frombuffer(self._map, chunk, count=len(self.sealed.crcs))["rows"]

    def read(self, place: int, out: NDArray[Any]) -> None:
        """From the map."""
        chunk, inside = divmod(place, self._per_chunk)
        if self._unchecked(chunk):
            self._check(chunk, place, self._rows[chunk])
        np.copyto(out, self._rows[chunk, inside])

    def require_uncut(self) -> None:
        """Compare the size. A file that is cut between this look and a read is a SIGBUS all the same."""
        size = self._map.size()
        if size != self._size:
            raise IntegrityError(
                f"expected {self._path} with {self._size:,} bytes as when it was opened, found {size:,} bytes: {self._repair}"
            )

    def will_need(self, place: int) -> None:
        """Whole pages around the row's chunk."""
        _, begin = self._at(place)
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin + self._layout.stride - page)


class PositionalShard(StoredShard):
    """Read with `preadv`: for network and cold disks, where many reads under way beat page faults one by one."""

    def _announce(self, descriptor: int) -> None:
        """All checksums at once, as one by one each would wait for the disk."""
        for chunk in range(self._layout.written_chunks(self.rows)):
            end = (chunk + 1) * self._layout.stride
            os.posix_fadvise(descriptor, end - self._layout.CRC_BYTES, self._layout.CRC_BYTES, os.POSIX_FADV_WILLNEED)

    def _open(self, descriptor: int, size: int) -> None:
        self._descriptor = os.dup(descriptor)

    def __del__(self) -> None:
        if "_descriptor" in vars(self):  # not where opening failed
            os.close(self._descriptor)

    def read(self, place: int, out: NDArray[Any]) -> None:
        """One system call."""
        chunk, begin = self._at(place)
        spec, images, wanted = self._layout.spec, self._layout.chunk_images, self._layout.chunk_bytes
        # A chunk that is the row itself lands where it is wanted; of a chunk of many rows one is copied.
        rows = out[None] if images == 1 else np.empty((images, *spec.shape), spec.storage)
        try:
            got = os.preadv(self._descriptor, [rows.reshape(-1).view(np.uint8).data], begin)
        except OSError as error:
            raise IntegrityError(
                f"row {place} of {self._path} cannot be read ({error.strerror}): {self._repair}"
            ) from None
        if got != wanted:
            raise IntegrityError(
                f"expected {wanted:,} bytes of row {place} in {self._path}, got {got:,}: {self._repair}"
            )
        if self._unchecked(chunk):
            self._check(chunk, place, rows)
        if images > 1:
            np.copyto(out, rows[place % images])

    def will_need(self, place: int) -> None:
        """Whole pages around the row's chunk."""
        _, begin = self._at(place)
        os.posix_fadvise(self._descriptor, begin, self._layout.stride, os.POSIX_FADV_WILLNEED)
