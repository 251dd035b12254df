"""Describe the arrays of a store, and define the names of axes that the whole project uses:

image    one distinct image (by the sha256 of its file)
patch    one position of the vision tower's grid, in raster order
hidden   width of the vision tower
embed    width of the language model's embeddings, which the projector maps to
clip     width of CLIP's joint space of images and texts
head     attention head of the tower
layer    layer of a model
kept     visual tokens that a pruner keeps
token    position of a text or of a whole prompt
question one question
top      the likeliest tokens of a distribution, by falling probability
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from configs.experiment import Dtype

MAX_SHARD_BYTES = 320_000_000
"""Most bytes of a shard of the largest array."""
MIN_CHUNK_BYTES = 64 * 1024
"""Arrays with at most this many bytes per image use one chunk per shard instead of one per image."""
PATCH_ORDER = "raster"
"""Order of the patch axis: row by row from the top left. It is part of every fingerprint."""
Codec = Literal["none", "zstd"]
"""How the chunks of a file are compressed: not at all, or, in an archive, with zstd."""
StoredDtype = Dtype | Literal["int32"]
"""Dtype of an array's values; `int32` holds numbers from 0 on, such as token ids."""
_STORAGE: dict[StoredDtype, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2", "int32": "<i4"}
_BFLOAT16_NAN = 0x7FC0
_NO_NUMBER = -1

__all__ = ["ArraySpec", "Codec", "Dtype", "ShardLayout", "StoredDtype", "default_shard_images"]


class ArraySpec(BaseModel):
    """One array of a store. Its first axis is the image, which is not listed here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    axes: tuple[str, ...]
    """Names of the axes after `image`."""
    shape: tuple[int, ...]
    """Sizes of the axes after `image`."""
    dtype: StoredDtype
    """Logical dtype. The bits of bfloat16 are stored as uint16, because plain Zarr has no bfloat16."""
    attributes: dict[str, Any] = {}
    """Further facts for a reader, such as the layer; they are stored in the array's Zarr attributes."""
    logarithms: Annotated[bool, Field(exclude_if=lambda logarithms: not logarithms)] = False
    """Whether the values are logarithms, of which that of 0 is minus infinity; otherwise infinity counts as damage."""

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype on the disk, little-endian."""
        return storage_dtype(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return math.prod(self.shape) * self.storage.itemsize

    @property
    def per_image_chunks(self) -> bool:
        """Whether each image is a chunk of its own."""
        return self.row_bytes > MIN_CHUNK_BYTES

    @property
    def fill(self) -> float | int:
        """The value in rows that were never written, or whose image could not be encoded."""
        return fill_value(self.dtype)

    def finite(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Tell for each row whether it can be data: no NaN, no infinity but the logarithm of 0, no number below 0."""
        flat = rows.reshape(len(rows), -1)
        if self.dtype == "int32":
            return np.asarray((flat >= 0).all(axis=1))
        if self.logarithms:
            return np.asarray((flat < np.inf).all(axis=1))
        if self.dtype == "bfloat16":
            exponent = np.uint16(0x7F80)
            return np.asarray(((flat & exponent) != exponent).all(axis=1))
        return np.asarray(np.isfinite(flat).all(axis=1))


def storage_dtype(dtype: StoredDtype) -> np.dtype[Any]:
    """Return the numpy dtype that stores values of a dtype on the disk."""
    return np.dtype(_STORAGE[dtype])


def fill_value(dtype: StoredDtype) -> float | int:
    """Return NaN as the dtype stores it, or -1, so that rows which were never written cannot pass for data."""
    if dtype == "int32":
        return _NO_NUMBER
    return _BFLOAT16_NAN if dtype == "bfloat16" else float("nan")


def holds_fill(values: NDArray[Any], dtype: StoredDtype) -> bool:
    """Tell whether any value is NaN or a number below 0, as all values of a missing chunk are."""
    if dtype == "int32":
        return bool((values < 0).any())
    if dtype == "bfloat16":
        return bool(((values & 0x7FFF) > 0x7F80).any())
    return bool(np.isnan(values).any())


@dataclass(frozen=True)
class ShardLayout:
    """Where the bytes of a shard of one array lie in its file; see docs/store-format.md."""

    spec: ArraySpec
    shard_images: int
    codec: Codec = "none"

    CRC_BYTES: ClassVar[int] = 4
    INDEX_ENTRY_BYTES: ClassVar[int] = 16

    @property
    def chunk_images(self) -> int:
        """Images per inner chunk."""
        return 1 if self.spec.per_image_chunks else self.shard_images

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk, without its checksum."""
        return self.chunk_images * self.spec.row_bytes

    @property
    def stride(self) -> int:
        """Bytes from the start of one inner chunk to the start of the next, if they are not compressed."""
        return self.chunk_bytes + self.CRC_BYTES

    @property
    def chunks(self) -> int:
        """Inner chunks of a full shard."""
        return self.shard_images // self.chunk_images

    @property
    def index_bytes(self) -> int:
        """Bytes of the index at the end of a shard, with its checksum."""
        return self.chunks * self.INDEX_ENTRY_BYTES + self.CRC_BYTES

    def written_chunks(self, rows: int) -> int:
        """Count the inner chunks in the file of a shard that holds `rows` images."""
        return -(-rows // self.chunk_images)

    def file_bytes(self, rows: int) -> int:
        """Compute the size in bytes of the uncompressed file of a shard that holds `rows` images."""
        return self.written_chunks(rows) * self.stride + self.index_bytes

    def relative_path(self, shard: int) -> str:
        """Return the path of a shard's file inside `features.zarr`."""
        return "/".join([self.spec.name, "c", str(shard), *["0"] * len(self.spec.shape)])


def default_shard_images(specs: Sequence[ArraySpec], images: int) -> int:
    """Choose how many images a shard holds: a power of two.

    It is the largest that keeps a shard of every array within MAX_SHARD_BYTES, but no larger than needed for `images`. Arrays
    with small rows are padded to whole shards, so without the second limit a few images of a small tower would take hundreds
    of megabytes.

    >>> embed = ArraySpec(name="projected", axes=("patch", "embed"), shape=(576, 4096), dtype="float16")
    >>> default_shard_images([embed], 100_000), default_shard_images([embed], 5)
    (64, 8)
    """
    largest = max(spec.row_bytes for spec in specs)
    fitting = int(math.log2(max(1, MAX_SHARD_BYTES // largest)))
    needed = math.ceil(math.log2(max(1, images)))
    return 2 ** min(fitting, needed)
