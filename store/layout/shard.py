# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (google_crc32c has no types)
"""Writing one shard's file: rows at a fixed stride, a crc32c behind each, the Zarr shard index at the end.

The result is a valid Zarr v3 shard (codecs `sharding_indexed` over `bytes`, `crc32c`) that a memory map reads at the
speed of memory. In an archive, zstd comes before the checksum, and chunks are as long as they get.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable
from uuid import uuid4

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from configs.files.atomic import PARTIAL, durable, sync_directory
from store.errors import StoreError
from store.files.disk import make_way
from store.layout.schema import Codec, Layout

ZSTD_LEVEL = 3
_EMPTY = 2**64 - 1
_BLOCK = 1 << 24


@runtime_checkable
class Readable(Protocol):
    """An open file, wherever it lies."""

    def read(self, size: int = ..., /) -> Any:
        """So many bytes, or all that are left."""
        ...

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to a place, and say where it is."""
        ...


class FileRecord(BaseModel):
    """What the commit log says about one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Inside `features.zarr`."""
    bytes: int
    crc32c: int
    """Of the checksums in the file, index included; over the rows as well it would be the same for every content."""
    codec: Codec = "none"
    """How its chunks are compressed; only files that are not can be mapped."""


@dataclass(frozen=True)
class Aside:
    """A shard's file, written and durable, not in its place yet."""

    path: Path
    root: Path
    record: FileRecord

    def settle(self) -> FileRecord:
        """Put it into its place, durably."""
        place = self.root / self.record.path
        make_way(self.root.parent, place)
        self.path.replace(place)
        sync_directory(place.parent)
        return self.record

    def drop(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)


def write_shard(root: Path, layout: Layout, shard: int, rows: NDArray[Any]) -> FileRecord:
    """Write the rows of a shard to `.partial`, fsync, rename, fsync the directory; see `write_aside`."""
    return write_aside(root, layout, shard, rows).settle()


def write_aside(root: Path, layout: Layout, shard: int, rows: NDArray[Any]) -> Aside:
    """Write the rows of a shard to a `.partial` of its own, and fsync it; nothing is left of it if that fails.

    `rows` is (image, *shape) in the storage dtype: all rows of the shard, fewer in the last one.
    """
    spec = layout.spec
    if rows.dtype != spec.storage or rows.shape[1:] != spec.shape or len(rows) > layout.shard_images:
        raise StoreError(
            f"expected rows of {spec.name} as {spec.storage} {spec.shape}, at most {layout.shard_images}; "
            f"got {rows.dtype} {rows.shape}: is the plan of another model?"
        )
    relative = layout.relative_path(shard)
    path = root / relative
    make_way(root.parent, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    with durable(partial.open("wb"), partial) as file:
        if layout.codec == "none":
            with suppress(OSError):  # two thirds of the price of growing it; where it fails, writing says why
                os.posix_fallocate(file.fileno(), 0, layout.file_bytes(len(rows)))
        checksum = _write_payload(file, layout, np.ascontiguousarray(rows))
        size = file.tell()
    return Aside(partial, root, FileRecord(path=relative, bytes=size, crc32c=checksum, codec=layout.codec))


def crc(data: bytes | NDArray[Any], before: int = 0) -> int:
    """crc32c of bytes, going on from `before`; a writable array is read through a read-only view, as the C code demands."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
        data.setflags(write=False)
    return int(google_crc32c.extend(before, data))


def checksum_of(file: Readable, layout: Layout) -> int | None:
    """What the record of an open file says of it; None if a chunk or the index is not what its own checksum says."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - layout.index_bytes))
    index = bytes(file.read())
    ends = chunk_ends(index, size, layout)
    if ends is None:
        return None
    checksums, at = b"", file.seek(0)
    for end in ends:
        found = 0
        for start in range(at, end - layout.CRC_BYTES, _BLOCK):
            found = crc(bytes(file.read(min(_BLOCK, end - layout.CRC_BYTES - start))), found)
        checksum = bytes(file.read(layout.CRC_BYTES))
        if checksum != _bytes(found):
            return None
        checksums, at = checksums + checksum, end
    return crc(checksums + index)


def plain_index(layout: Layout, rows: int) -> bytes:
    """The index of an uncompressed file with `rows` images: its chunks lie at a fixed stride."""
    index = np.full((layout.chunks, 2), _EMPTY, "<u8")
    written = layout.written_chunks(rows)
    index[:written, 0] = np.arange(written, dtype="<u8") * layout.stride
    index[:written, 1] = layout.stride
    return index.tobytes() + _bytes(crc(index.tobytes()))


def chunk_ends(index: bytes, size: int, layout: Layout) -> list[int] | None:
    """Where the chunks of a file of `size` bytes end, by its index: one behind the other, up to the index itself.

    None if the index is damaged or says something else.
    """
    content, checksum = index[: -layout.CRC_BYTES], index[-layout.CRC_BYTES :]
    if len(index) != layout.index_bytes or _bytes(crc(content)) != checksum:
        return None
    ends = [0]
    for offset, length in np.frombuffer(content, "<u8").reshape(-1, 2).tolist():
        if offset != _EMPTY:
            if offset != ends[-1] or length < layout.CRC_BYTES:
                return None
            ends.append(offset + length)
    return ends[1:] if ends[-1] == size - layout.index_bytes else None


def _write_payload(file: BinaryIO, layout: Layout, rows: NDArray[Any]) -> int:
    """Write a shard, and return the checksum for its record."""
    checksums, at = b"", 0
    index = np.full((layout.chunks, 2), _EMPTY, "<u8")
    for number, chunk in enumerate(_chunks(layout, rows)):
        data = chunk.reshape(-1).view(np.uint8)
        if layout.codec == "zstd":
            data = np.frombuffer(Zstd(ZSTD_LEVEL).encode(data), np.uint8)
        file.write(data.data)
        checksum = _bytes(crc(data))  # computed after it was written: it is in the CPU's cache by then
        file.write(checksum)
        index[number] = (at, len(data) + layout.CRC_BYTES)
        checksums, at = checksums + checksum, at + len(data) + layout.CRC_BYTES
    end = index.tobytes() + _bytes(crc(index.tobytes()))
    file.write(end)
    return crc(checksums + end)


def _chunks(layout: Layout, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """What of the rows each inner chunk holds; one that is for more images than there are is filled up."""
    if layout.spec.per_image_chunks or len(rows) == layout.shard_images:
        yield from rows.reshape(-1, layout.chunk_images, *layout.spec.shape)
    else:
        whole = np.full((layout.shard_images, *layout.spec.shape), layout.spec.fill, layout.spec.storage)
        whole[: len(rows)] = rows
        yield whole


def _bytes(checksum: int) -> bytes:
    return checksum.to_bytes(Layout.CRC_BYTES, "little")
