# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (google_crc32c has no types)
"""Write and check the file of one shard: rows at a fixed stride, a crc32c behind each row, the Zarr shard index at the end.

The file is a valid Zarr v3 shard (codecs `sharding_indexed` over `bytes`, `crc32c`) that a memory map reads at the speed of
memory. In an archive, chunks are compressed with zstd before the checksum, and so have different lengths.
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
from store.layout.schema import Codec, ShardLayout

ZSTD_LEVEL = 3
_EMPTY = 2**64 - 1
"""Marks a chunk in the index that was not written, as Zarr defines it."""
_BLOCK = 1 << 24
"""Bytes that are read at once to compute a checksum."""


@runtime_checkable
class Readable(Protocol):
    """An open file, on a disk or elsewhere."""

    def read(self, size: int = ..., /) -> Any:
        """Read a number of bytes, or all that are left."""
        ...

    def seek(self, offset: int, whence: int = ..., /) -> int:
        """Go to an offset, and return it."""
        ...


class FileRecord(BaseModel):
    """What a commit record says about the file of one array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Path inside `features.zarr`."""
    bytes: int
    """Size of the file."""
    crc32c: int
    """Checksum of the chunks' checksums and of the index. The rows are left out, because a crc over data and the data's own crc
    is the same for any data."""
    codec: Codec = "none"
    """How the chunks are compressed; only uncompressed files can be mapped."""


@dataclass(frozen=True)
class Aside:
    """The file of a shard that is written and durable, but does not have its final name yet."""

    path: Path
    """Where the file lies now."""
    root: Path
    """The folder `features.zarr`."""
    record: FileRecord
    """The file's record, with its final path."""

    def settle(self) -> FileRecord:
        """Move the file to its final path, durably, and return its record."""
        target = self.root / self.record.path
        make_way(self.root.parent, target)
        self.path.replace(target)
        sync_directory(target.parent)
        return self.record

    def drop(self) -> None:
        """Remove the file, unless it was moved to its final path."""
        self.path.unlink(missing_ok=True)


def write_shard(root: Path, layout: ShardLayout, shard: int, rows: NDArray[Any]) -> FileRecord:
    """Write the rows of a shard and move the file to its final path; see `write_aside` for the arguments."""
    return write_aside(root, layout, shard, rows).settle()


def write_aside(root: Path, layout: ShardLayout, shard: int, rows: NDArray[Any]) -> Aside:
    """Write the rows of a shard to a new `.partial` file beside its final path; nothing is left of the file if that fails.

    Args:
        root: the folder `features.zarr`.
        layout: the layout of the array.
        shard: the number of the shard.
        rows: (image, *shape) in the storage dtype. All rows of the shard; a shard at the end of a segment may have fewer.
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
            # Allocating the file first takes two thirds of the time of letting it grow. If this fails, writing says why.
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, layout.file_bytes(len(rows)))
        checksum = _write_payload(file, layout, np.ascontiguousarray(rows))
        size = file.tell()
    return Aside(partial, root, FileRecord(path=relative, bytes=size, crc32c=checksum, codec=layout.codec))


def crc(data: bytes | NDArray[Any], before: int = 0) -> int:
    """Compute the crc32c of bytes, continuing from the checksum `before`.

    The C code accepts no writable memory, so an array is passed as a read-only view.
    """
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
        data.setflags(write=False)
    return int(google_crc32c.extend(before, data))


def checksum_of(file: Readable, layout: ShardLayout) -> int | None:
    """Compute the checksum that the record of an open file should hold.

    None if a chunk or the index differs from its own checksum.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - layout.index_bytes))
    index = bytes(file.read())
    ends = chunk_ends(index, size, layout)
    if ends is None:
        return None
    checksums, begin = b"", file.seek(0)
    for end in ends:
        computed = 0
        for start in range(begin, end - layout.CRC_BYTES, _BLOCK):
            computed = crc(bytes(file.read(min(_BLOCK, end - layout.CRC_BYTES - start))), computed)
        checksum = bytes(file.read(layout.CRC_BYTES))
        if checksum != _bytes(computed):
            return None
        checksums, begin = checksums + checksum, end
    return crc(checksums + index)


def plain_index(layout: ShardLayout, rows: int) -> bytes:
    """Make the index of an uncompressed file with `rows` images, whose chunks lie at a fixed stride."""
    index = np.full((layout.chunks, 2), _EMPTY, "<u8")
    written = layout.written_chunks(rows)
    index[:written, 0] = np.arange(written, dtype="<u8") * layout.stride
    index[:written, 1] = layout.stride
    return index.tobytes() + _bytes(crc(index.tobytes()))


def chunk_ends(index: bytes, size: int, layout: ShardLayout) -> list[int] | None:
    """Read from an index where the chunks of a file of `size` bytes end.

    None if the index is damaged, or if its chunks leave a gap or overlap before the index.
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


def _write_payload(file: BinaryIO, layout: ShardLayout, rows: NDArray[Any]) -> int:
    """Write the chunks and the index of a shard, and return the checksum for its record."""
    checksums, offset = b"", 0
    index = np.full((layout.chunks, 2), _EMPTY, "<u8")
    for number, chunk in enumerate(_chunks(layout, rows)):
        data = chunk.reshape(-1).view(np.uint8)
        if layout.codec == "zstd":
            data = np.frombuffer(Zstd(ZSTD_LEVEL).encode(data), np.uint8)
        file.write(data.data)
        checksum = _bytes(crc(data))  # computed after writing, because writing brings the data into the CPU's cache
        file.write(checksum)
        index[number] = (offset, len(data) + layout.CRC_BYTES)
        checksums, offset = checksums + checksum, offset + len(data) + layout.CRC_BYTES
    end = index.tobytes() + _bytes(crc(index.tobytes()))
    file.write(end)
    return crc(checksums + end)


def _chunks(layout: ShardLayout, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Cut the rows into inner chunks; a chunk that is larger than the rows is filled up with `fill`."""
    if layout.spec.per_image_chunks or len(rows) == layout.shard_images:
        yield from rows.reshape(-1, layout.chunk_images, *layout.spec.shape)
    else:
        whole = np.full((layout.shard_images, *layout.spec.shape), layout.spec.fill, layout.spec.storage)
        whole[: len(rows)] = rows
        yield whole


def _bytes(checksum: int) -> bytes:
    return checksum.to_bytes(ShardLayout.CRC_BYTES, "little")
