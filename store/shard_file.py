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
from store.schema import Dtype, Layout, holds_fill
from store.shard import FileRecord, crc

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
        """Nobody can be told."""


class StoredShard(ShardFile):
    """A file with rows at a fixed stride; each chunk's checksum is verified as `verify` says."""

    def __init__(
        self, path: Path, layout: Layout, rows: int, record: FileRecord, repair: str, verified: NDArray[np.bool_],
        verify: Verify,
    ) -> None:  # fmt: skip
        """`verified` is the caller's: it outlives this file's turn among the open ones."""
        self._path, self._layout, self._repair, self.rows = path, layout, repair, rows
        self._verified, self._verify = verified, verify
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise IntegrityError(f"expected {path} as committed, found none ({error.strerror}): {repair}") from None
        try:
            # A map of a truncated file is a SIGBUS, not an error: sizes are compared before mapping.
            size = os.fstat(descriptor).st_size
            if size != record.bytes or size != layout.file_bytes(rows):
                raise IntegrityError(
                    f"expected {path} with {record.bytes:,} bytes as committed, found {size:,} bytes: {repair}"
                )
            self._open(descriptor, size)
        finally:
            os.close(descriptor)

    @abstractmethod
    def _open(self, descriptor: int, size: int) -> None:
        """Take what is needed from a descriptor that is closed afterwards."""

    def _at(self, place: int) -> tuple[int, int]:
        """The chunk that a row is in, and where that chunk begins in the file."""
        chunk = place // self._layout.chunk_images
        return chunk, chunk * self._layout.stride

    def _unchecked(self, chunk: int) -> bool:
        return self._verify != "never" and (self._verify == "always" or not self._verified[chunk])

    def _check(self, chunk: int, place: int, rows: NDArray[Any], stored: int) -> None:
        if crc(rows) != stored:
            raise IntegrityError(f"{self._path} is damaged (checksum of row {place}): {self._repair}")
        self._verified[chunk] = True


class MappedShard(StoredShard):
    """Memory-mapped: the fastest where the file is, or will be, in the page cache."""

    def _open(self, descriptor: int, size: int) -> None:
        spec = self._layout.spec
        self._map = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        self._per_chunk = self._layout.chunk_images
        chunk = np.dtype([("rows", spec.storage, (self._per_chunk, *spec.shape)), ("crc", "<u4")])
        chunks = np.frombuffer(self._map, chunk, count=len(self._verified))
        self._rows, self._crcs = chunks["rows"], chunks["crc"]

    def read(self, place: int, out: NDArray[Any]) -> None:
        """From the map."""
        chunk, inside = divmod(place, self._per_chunk)
        if self._unchecked(chunk):
            self._check(chunk, place, self._rows[chunk], int(self._crcs[chunk]))
        np.copyto(out, self._rows[chunk, inside])

    def will_need(self, place: int) -> None:
        """Whole pages around the row's chunk."""
        _, begin = self._at(place)
        page = begin - begin % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, page, begin + self._layout.stride - page)


class PositionalShard(StoredShard):
    """Read with `preadv`: for network and cold disks, where many reads under way beat page faults one by one."""

    def _open(self, descriptor: int, size: int) -> None:
        self._descriptor = os.dup(descriptor)

    def __del__(self) -> None:
        if "_descriptor" in vars(self):  # not where opening failed
            os.close(self._descriptor)

    def read(self, place: int, out: NDArray[Any]) -> None:
        """One system call."""
        chunk, begin = self._at(place)
        spec, images, wanted = self._layout.spec, self._layout.chunk_images, self._layout.stride
        # A chunk that is the row itself lands where it is wanted; of a chunk of many rows one is copied.
        rows = out[None] if images == 1 else np.empty((images, *spec.shape), spec.storage)
        stored = np.empty(1, "<u4")
        got = os.preadv(self._descriptor, [rows.reshape(-1).view(np.uint8).data, stored.data], begin)
        if got != wanted:
            raise IntegrityError(
                f"expected {wanted:,} bytes of row {place} in {self._path}, got {got:,}: {self._repair}"
            )
        if self._unchecked(chunk):
            self._check(chunk, place, rows, int(stored[0]))
        if images > 1:
            np.copyto(out, rows[place % images])

    def will_need(self, place: int) -> None:
        """Whole pages around the row's chunk."""
        _, begin = self._at(place)
        os.posix_fadvise(self._descriptor, begin, self._layout.stride, os.POSIX_FADV_WILLNEED)
