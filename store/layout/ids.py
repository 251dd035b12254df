"""Which image is in which row: sha256 per row, and the names that users have for it.

One image may have many names. Nothing is read when a store is opened: an array is mapped, and compared with its checksum,
when a lookup first needs it. So opening costs milliseconds and no dictionary, however many images there are, and processes
share what they read.
"""

import hashlib
import json
import math
import mmap
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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

ARRAYS = ("sha256", "sorted_rows", "names_utf8", "name_offsets", "name_rows", "sorted_hashes", "sorted_names")
"""See docs/store-format.md."""
_NAMES = {"names_utf8": "|u1", "name_offsets": "<i8", "name_rows": "<i8"}
_CRC_BYTES = 4
# How `write_whole` has zarr write an array; numbers of one byte have no order of bytes.
_BYTES = {"name": "bytes"}
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}


@dataclass(frozen=True)
class _Column:
    """One array of the ids: what is known of it beforehand, and how to get at its values."""

    dtype: str
    shape: tuple[int, ...]
    crc32c: int
    """Of the values' bytes; a lookup trusts only what has it."""
    sha256: str
    load: Callable[[], NDArray[Any]]
    """Raises IntegrityError where the values are not those that were written."""

    @classmethod
    def of(cls, values: NDArray[Any]) -> "_Column":
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return cls(values.dtype.str, values.shape, crc(data), hashlib.sha256(data.data).hexdigest(), lambda: values)


class ImageIds:
    """Rows, ids and names of a store. Lookups raise IntegrityError (exit 4) where the array they need is damaged."""

    def __init__(self, columns: Mapping[str, _Column]) -> None:
        self._columns = columns
        self._values: dict[str, NDArray[Any]] = {}

    @classmethod
    def build(cls, images: Sequence[tuple[str, Sequence[str]]]) -> "ImageIds":
        """From (sha256 in hex, names) of every row."""
        names = [name.encode(errors="surrogatepass") for _, given in images for name in given]
        counts = np.fromiter((len(given) for _, given in images), "<i8", len(images))
        offsets = np.zeros(len(names) + 1, "<i8")
        np.cumsum(np.fromiter(map(len, names), "<i8", len(names)), out=offsets[1:])
        hashes = np.fromiter(map(_hash, names), "<u8", len(names))
        order = np.argsort(hashes, kind="stable")
        shas = np.frombuffer(b"".join(bytes.fromhex(sha) for sha, _ in images), np.uint8).reshape(len(images), 32)
        arrays = {
            "sha256": shas,
            "sorted_rows": _sha_order(shas),
            "names_utf8": np.frombuffer(b"".join(names), np.uint8),
            "name_offsets": offsets,
            "name_rows": np.repeat(np.arange(len(images), dtype="<i8"), counts),
            "sorted_hashes": hashes[order],
            "sorted_names": order.astype("<i8"),
        }
        return cls({name: _Column.of(values) for name, values in arrays.items()})

    @classmethod
    def of_columns(
        cls, sha256: NDArray[Any], names_utf8: NDArray[Any], name_offsets: NDArray[Any], name_rows: NDArray[Any]
    ) -> "ImageIds":
        """Made again of ids and names alone, so that what lookups go by cannot say something else; ValueError where they do
        not fit together.
        """
        if len(name_offsets) != len(name_rows) + 1:
            raise ValueError(f"expected {len(name_rows) + 1} offsets of names, found {len(name_offsets)}")
        rows: list[int] = name_rows.tolist()
        offsets: list[int] = name_offsets.tolist()
        names: list[list[str]] = [[] for _ in range(len(sha256))]
        for row, (begin, end) in zip(rows, pairwise(offsets), strict=True):
            if not 0 <= row < len(sha256):
                raise ValueError(f"expected a row below {len(sha256)}, found {row}")
            names[row].append(names_utf8[begin:end].tobytes().decode(errors="surrogatepass"))
        return cls.build([(sha.tobytes().hex(), given) for sha, given in zip(sha256, names, strict=True)])

    @classmethod
    def recovered(cls, folder: Path) -> "ImageIds":
        """From the files of ids and names in a group, whatever is damaged beside them: metadata, or what lookups go by.

        Raises IntegrityError (exit 4) where one of these four is not whole. Whether they are a plan's, its digest says.
        """
        try:
            shas = _values(folder / "sha256/c/0/0", "|u1")
            others = [_values(folder / f"{name}/c/0", dtype) for name, dtype in _NAMES.items()]
            return cls.of_columns(shas.reshape(-1, 32), *others)
        except (ValueError, OSError) as error:
            said = " ".join(str(error).split())
            raise IntegrityError(f"the ids in {folder} are damaged ({said}): {HEAL}") from None

    @classmethod
    def read(cls, group: zarr.Group) -> "ImageIds":
        """From the `ids` group of a store; values stay on disk until they are needed.

        Raises IntegrityError (exit 4) where an array is missing or its file has another size.
        """
        found = {name: group.get(name) for name in ARRAYS}
        columns = {name: _stored(array) for name, array in found.items() if isinstance(array, zarr.Array)}
        absent = [name for name in ARRAYS if name not in columns]
        if absent:
            raise IntegrityError(f"expected the arrays {', '.join(absent)} in {group.store_path}, found none: {HEAL}")
        return cls(columns)

    def write(self, parent: zarr.Group, group_name: str) -> None:
        """As a group of `parent`."""
        group = parent.create_group(group_name)
        for name in sorted(self._columns):
            column = self._columns[name]
            created = write_whole(group, name, self._array(name))
            created.attrs.update({"crc32c": column.crc32c, "sha256": column.sha256})

    def columns(self, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Some of the arrays that it is made of; see docs/store-format.md."""
        return {name: self._array(name) for name in names}

    def __len__(self) -> int:
        return self._columns["sha256"].shape[0]

    def sha_of_row(self, row: int) -> str:
        """The image's id, in hex."""
        return self._array("sha256")[row].tobytes().hex()

    def row_of_sha(self, sha: str) -> int | None:
        """The row of an id, None if it is not in the store."""
        wanted, shas, order = bytes.fromhex(sha), self._array("sha256"), self._array("sorted_rows")
        at = bisect_left(order, wanted, key=lambda row: shas[row].tobytes())
        return int(order[at]) if at < len(order) and shas[order[at]].tobytes() == wanted else None

    def row_of_name(self, name: str) -> int | None:
        """The row of an image by one of its names, None if the store does not know the name."""
        encoded = name.encode(errors="surrogatepass")
        hashes = self._array("sorted_hashes")
        wanted = np.uint64(_hash(encoded))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            number = int(self._array("sorted_names")[at])
            if self._name(number) == encoded:
                return int(self._array("name_rows")[number])
            at += 1
        return None

    def names(self, row: int) -> list[str]:
        """All names of a row, in the order they were given."""
        first, end = np.searchsorted(self._array("name_rows"), [row, row + 1])  # names lie in the order of their rows
        return [self._name(number).decode(errors="surrogatepass") for number in range(int(first), int(end))]

    def digest(self, rows: range | None = None) -> str:
        """sha256 over the ids of some rows; without `rows` over everything, names included.

        The latter is made of each array's recorded checksums, so that comparing it with a plan's reads no values; reading
        them later compares those.
        """
        if rows is not None:
            return hashlib.sha256(self._array("sha256")[rows.start : rows.stop].data).hexdigest()
        known = [(name, c.dtype, c.shape, c.crc32c, c.sha256) for name, c in sorted(self._columns.items())]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def _name(self, number: int) -> bytes:
        offsets = self._array("name_offsets")
        return self._array("names_utf8")[offsets[number] : offsets[number + 1]].tobytes()

    def _array(self, name: str) -> NDArray[Any]:
        values = self._values.get(name)
        if values is None:
            values = self._values[name] = self._columns[name].load()
        return values


def write_whole(group: zarr.Group, name: str, array: NDArray[Any], fill: float | int = 0) -> zarr.Array[Any]:
    """One small array as a single uncompressed chunk with a checksum, written even if it is nothing but `fill`."""
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


def printable(name: str) -> str:
    """A name as text on one line that any output takes: what is not utf-8, and what steers a terminal, is escaped."""
    return "".join(map(_visible, name))


def _stored(array: zarr.Array[Any]) -> _Column:
    """An array of the ids as it lies in a store; its values are mapped where that can be done, else read through zarr."""
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
            said = " ".join(str(error).split())
            raise IntegrityError(f"{file or array.store_path} is damaged ({said}): {HEAL}") from None
        if crc(values) != checksum:
            raise IntegrityError(f"{file or array.store_path} is damaged (its checksum differs): {HEAL}")
        return values

    return _Column(dtype.str, shape, checksum, str(attributes["sha256"]), load)


def _only_chunk(array: zarr.Array[Any]) -> Path | None:
    """The file that holds all of an array as plain bytes and a checksum; None where it is stored in another way."""
    store = array.store_path.store
    if not isinstance(store, LocalStore) or array.chunks != array.shape:
        return None
    folder = store.root / array.path
    described = json.loads((folder / METADATA).read_bytes())
    as_written = described["codecs"] in ([_BYTES, _CRC], [_LITTLE, _CRC]) and described["chunk_key_encoding"] == _KEYS
    return folder / "/".join(["c", *["0"] * array.ndim]) if as_written else None


def _mapped(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), size + _CRC_BYTES, access=mmap.ACCESS_READ)  # ValueError if it is shorter
    values = np.frombuffer(mapped, dtype, math.prod(shape)).reshape(shape)
    if crc(values) != int.from_bytes(mapped[size:], "little"):
        raise ValueError("its checksum differs")
    return values


def _values(file: Path, dtype: str) -> NDArray[Any]:
    """What the only chunk of an array holds; an array without values has no file."""
    size = file.stat().st_size - _CRC_BYTES if file.exists() else 0
    return _mapped(file, np.dtype(dtype), (size // np.dtype(dtype).itemsize,)) if size > 0 else np.empty(0, dtype)


def _sha_order(shas: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Rows in the order of their ids' bytes."""
    words = shas.view(">u8")  # big-endian numbers are ordered as bytes are
    first = words[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    if (np.diff(first[order]) == 0).any():  # ids that begin alike: only where they are no hashes
        order = np.lexsort(words.T[::-1])
    return order.astype("<i8")


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python carries a byte that is not utf-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
