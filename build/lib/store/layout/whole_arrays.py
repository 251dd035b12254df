"""Small arrays, such as the ids, that lie in one chunk: written in one go, mapped when they are first needed.

The checksum of an array is recorded beside it, so that two arrays can be compared without reading either, and so that values
which are damaged on the disk are never used.
"""

import hashlib
import json
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from store.errors import IntegrityError
from store.layout.manifest import HEAL, METADATA
from store.layout.shard import crc

_CRC_BYTES = 4
# How `write_whole` has zarr write an array; numbers of one byte have no order of bytes.
_BYTES = {"name": "bytes"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True)
class WholeArray:
    """One array: what is recorded about it, and a function that loads its values."""

    dtype: str
    shape: tuple[int, ...]
    crc32c: int
    """Checksum of the values' bytes; loaded values that have another one are refused."""
    sha256: str
    """Digest of the values' bytes, in hex."""
    load: Callable[[], NDArray[Any]]
    """Loads the values; raises IntegrityError (exit 4) if they are not the values that were written."""

    @classmethod
    def of(cls, values: NDArray[Any]) -> "WholeArray":
        """Describe values that are in memory."""
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return cls(values.dtype.str, values.shape, crc(data), hashlib.sha256(data.data).hexdigest(), lambda: values)

    @classmethod
    def stored(cls, array: zarr.Array[Any]) -> "WholeArray":
        """Describe an array of a store by its recorded checksums, without reading a value.

        The values are mapped if the array lies on a local disk as `write_whole` writes it; otherwise zarr reads them.
        Raises IntegrityError (exit 4) if the array's file is missing or has another size.
        """
        attributes: dict[str, Any] = dict(array.attrs)
        checksum, dtype, shape = int(attributes["crc32c"]), np.dtype(array.dtype), tuple(array.shape)
        file = _only_chunk(array) if math.prod(shape) else None
        size = math.prod(shape) * dtype.itemsize + _CRC_BYTES
        if file is not None and (not file.is_file() or file.stat().st_size != size):
            raise IntegrityError(f"expected {file} with {size:,} bytes, it is missing or has another size: {HEAL}")

        def load() -> NDArray[Any]:
            try:
                values = np.asarray(array[...]) if file is None else _mapped(file, dtype, shape)
            except (ValueError, OSError) as error:
                reason = " ".join(str(error).split())
                raise IntegrityError(f"{file or array.store_path} is damaged ({reason}): {HEAL}") from None
            if crc(values) != checksum:
                raise IntegrityError(f"{file or array.store_path} is damaged (its checksum differs): {HEAL}")
            return values

        return cls(dtype.str, shape, checksum, str(attributes["sha256"]), load)


def write_whole(group: zarr.Group, name: str, array: NDArray[Any], fill: float | int = 0) -> zarr.Array[Any]:
    """Write a small array as one uncompressed chunk with a checksum.

    The chunk is written even if it holds nothing but `fill`: zarr would leave such a chunk out, and a lost file could not be
    told from it.
    """
    chunks = tuple(max(1, size) for size in array.shape) or None
    created = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks or "auto",
        compressors=[Crc32cCodec()],
        fill_value=fill,
        config={"write_empty_chunks": True},
    )
    created[...] = array
    return created


def values_in_chunk(file: Path, dtype: str) -> NDArray[Any]:
    """Map the only chunk of a one-dimensional array, whose length follows from the file's size.

    An array without values has no file. Raises ValueError or OSError if the file is damaged.
    """
    size = file.stat().st_size - _CRC_BYTES if file.exists() else 0
    return _mapped(file, np.dtype(dtype), (size // np.dtype(dtype).itemsize,)) if size > 0 else np.empty(0, dtype)


def _only_chunk(array: zarr.Array[Any]) -> Path | None:
    """Find the file that holds all of an array as plain bytes and a checksum; None if the array is stored in another way."""
    store = array.store_path.store
    if not isinstance(store, LocalStore) or array.chunks != array.shape:
        return None
    folder = store.root / array.path
    metadata = json.loads((folder / METADATA).read_bytes())
    as_written = metadata["codecs"] in ([_BYTES, _CRC], [_LITTLE, _CRC]) and metadata["chunk_key_encoding"] == _KEYS
    return folder / "/".join(["c", *["0"] * array.ndim]) if as_written else None


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Map the values in a chunk; ValueError if the chunk's own checksum differs."""
    size = math.prod(shape) * dtype.itemsize
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), size + _CRC_BYTES, access=mmap.ACCESS_READ)  # ValueError if it is shorter
    values = np.frombuffer(mapped, dtype, math.prod(shape)).reshape(shape)
    if crc(values) != int.from_bytes(mapped[size:], "little"):
        raise ValueError("its checksum differs")
    return values
