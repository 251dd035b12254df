# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (google_crc32c has no types)
"""Writing one shard's file: rows at a fixed stride, a crc32c behind each, the Zarr shard index at the end.

The result is a valid Zarr v3 shard (codecs `sharding_indexed` over `bytes`, `crc32c`) that a memory map reads at the
speed of memory. In an archive, zstd comes before the checksum, and chunks are as long as they get.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from configs.atomic import sync_directory
from store.errors import StoreError
from store.schema import Codec, Layout

PARTIAL = ".partial"
ZSTD_LEVEL = 3
_EMPTY = 2**64 - 1


class FileRecord(BaseModel):
    """What the commit log says about one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Inside `features.zarr`."""
    bytes: int
    crc32c: int
    """Of the whole file."""
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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            writer = _Checked(file)
            _write_payload(writer, layout, np.ascontiguousarray(rows))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Aside(partial, root, FileRecord(path=relative, bytes=writer.written, crc32c=writer.crc, codec=layout.codec))


def crc(data: bytes | NDArray[Any], before: int = 0) -> int:
    """crc32c of bytes, going on from `before`; a writable array is read through a read-only view, as the C code demands."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
        data.setflags(write=False)
    return int(google_crc32c.extend(before, data))


class _Checked:
    """A file that keeps count and checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.written, self.crc = file, 0, 0

    def write(self, data: bytes | NDArray[Any]) -> None:
        self.file.write(data if isinstance(data, bytes) else data.data)
        self.written += len(data)
        self.crc = crc(data, self.crc)


def _write_payload(out: _Checked, layout: Layout, rows: NDArray[Any]) -> None:
    if layout.spec.per_image_chunks:
        chunks = [rows[number : number + 1] for number in range(len(rows))]
    else:
        whole = np.full((layout.shard_images, *layout.spec.shape), layout.spec.fill, layout.spec.storage)
        whole[: len(rows)] = rows
        chunks = [whole]
    index = np.full((layout.chunks, 2), _EMPTY, "<u8")
    for number, chunk in enumerate(chunks):
        data = chunk.reshape(-1).view(np.uint8)
        if layout.codec == "zstd":
            data = np.frombuffer(Zstd(ZSTD_LEVEL).encode(data), np.uint8)
        index[number] = (out.written, len(data) + layout.CRC_BYTES)
        out.write(data)
        out.write(crc(data).to_bytes(layout.CRC_BYTES, "little"))
    out.write(index.tobytes())
    out.write(crc(index.tobytes()).to_bytes(layout.CRC_BYTES, "little"))
