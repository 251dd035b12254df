"""Which image is in which row: the sha256 of each row's image, and the names that users have for the image.

One image may have many names. Opening a store reads no array: the first lookup that needs an array maps it and compares it
with its checksum. So opening takes milliseconds and builds no dictionary, however many images there are, and processes share
the memory of what they read.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from store.errors import IntegrityError
from store.layout.manifest import HEAL
from store.layout.whole_arrays import WholeArray, values_in_chunk, write_whole

ARRAYS = ("sha256", "sorted_rows", "names_utf8", "name_offsets", "name_rows", "sorted_hashes", "sorted_names")
"""The arrays of the `ids` group; docs/store-format.md explains each."""
_NAMES = {"names_utf8": "|u1", "name_offsets": "<i8", "name_rows": "<i8"}


class ImageIds:
    """The rows, ids and names of a store's images. A lookup raises IntegrityError (exit 4) if an array it needs is damaged."""

    def __init__(self, columns: Mapping[str, WholeArray]) -> None:
        self._columns = columns
        self._values: dict[str, NDArray[Any]] = {}

    @classmethod
    def build(cls, images: Sequence[tuple[str, Sequence[str]]]) -> "ImageIds":
        """Make the ids of new images.

        Args:
            images: for every row, the image's sha256 in hex and its names.
        """
        encoded = [name.encode(errors="surrogatepass") for _, names in images for name in names]
        counts = np.fromiter((len(names) for _, names in images), "<i8", len(images))
        offsets = np.zeros(len(encoded) + 1, "<i8")
        np.cumsum(np.fromiter(map(len, encoded), "<i8", len(encoded)), out=offsets[1:])
        hashes = np.fromiter(map(_hash, encoded), "<u8", len(encoded))
        order = np.argsort(hashes, kind="stable")
        shas = np.frombuffer(b"".join(bytes.fromhex(sha) for sha, _ in images), np.uint8).reshape(len(images), 32)
        arrays = {
            "sha256": shas,
            "sorted_rows": _sha_order(shas),
            "names_utf8": np.frombuffer(b"".join(encoded), np.uint8),
            "name_offsets": offsets,
            "name_rows": np.repeat(np.arange(len(images), dtype="<i8"), counts),
            "sorted_hashes": hashes[order],
            "sorted_names": order.astype("<i8"),
        }
        return cls({name: WholeArray.of(values) for name, values in arrays.items()})

    @classmethod
    def of_columns(
        cls, sha256: NDArray[Any], names_utf8: NDArray[Any], name_offsets: NDArray[Any], name_rows: NDArray[Any]
    ) -> "ImageIds":
        """Make the ids again from the arrays of ids and names, computing the sorted arrays anew.

        So the arrays that lookups use cannot contradict the others. Raises ValueError if the given arrays do not fit together.
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
        return cls.build([(sha.tobytes().hex(), of_row) for sha, of_row in zip(sha256, names, strict=True)])

    @classmethod
    def recovered(cls, folder: Path) -> "ImageIds":
        """Make the ids again from the files of a damaged `ids` group.

        Only the four files of ids and names need to be whole; metadata and the sorted arrays are not read. The caller compares
        the digest with the plan's: this function cannot tell whose ids they are. Raises IntegrityError (exit 4) if one of the
        four files is damaged.
        """
        try:
            shas = values_in_chunk(folder / "sha256/c/0/0", "|u1")
            others = [values_in_chunk(folder / f"{name}/c/0", dtype) for name, dtype in _NAMES.items()]
            return cls.of_columns(shas.reshape(-1, 32), *others)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise IntegrityError(f"the ids in {folder} are damaged ({reason}): {HEAL}") from None

    @classmethod
    def read(cls, group: zarr.Group) -> "ImageIds":
        """Open the `ids` group of a store; the values stay on disk until they are needed.

        Raises IntegrityError (exit 4) if an array is missing or its file has another size.
        """
        members = {name: group.get(name) for name in ARRAYS}
        columns = {name: WholeArray.stored(array) for name, array in members.items() if isinstance(array, zarr.Array)}
        absent = [name for name in ARRAYS if name not in columns]
        if absent:
            raise IntegrityError(f"expected the arrays {', '.join(absent)} in {group.store_path}, found none: {HEAL}")
        return cls(columns)

    def write(self, parent: zarr.Group, group_name: str) -> None:
        """Write the ids as a new group of `parent`."""
        group = parent.create_group(group_name)
        for name in sorted(self._columns):
            column = self._columns[name]
            created = write_whole(group, name, self._array(name))
            created.attrs.update({"crc32c": column.crc32c, "sha256": column.sha256})

    def columns(self, names: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Load some of the arrays in `ARRAYS`, by name."""
        return {name: self._array(name) for name in names}

    def __len__(self) -> int:
        return self._columns["sha256"].shape[0]

    def sha_of_row(self, row: int) -> str:
        """Return the id of the image in a row, in hex."""
        return self._array("sha256")[row].tobytes().hex()

    def row_of_sha(self, sha: str) -> int | None:
        """Find the row of an id in hex; None if the store has no such image."""
        wanted, shas, order = bytes.fromhex(sha), self._array("sha256"), self._array("sorted_rows")
        position = bisect_left(order, wanted, key=lambda row: shas[row].tobytes())
        is_there = position < len(order) and shas[order[position]].tobytes() == wanted
        return int(order[position]) if is_there else None

    def row_of_name(self, name: str) -> int | None:
        """Find the row of an image by one of its names; None if the store does not know the name."""
        encoded = name.encode(errors="surrogatepass")
        hashes = self._array("sorted_hashes")
        wanted = np.uint64(_hash(encoded))
        position = int(np.searchsorted(hashes, wanted))
        while position < len(hashes) and hashes[position] == wanted:
            number = int(self._array("sorted_names")[position])
            if self._name(number) == encoded:
                return int(self._array("name_rows")[number])
            position += 1
        return None

    def names(self, row: int) -> list[str]:
        """List all names of the image in a row, in the order in which they were given."""
        first, end = np.searchsorted(self._array("name_rows"), [row, row + 1])  # names lie in the order of their rows
        return [self._name(number).decode(errors="surrogatepass") for number in range(int(first), int(end))]

    def any_named(self, rows: range) -> bool:
        """Tell whether an image in these consecutive rows has a name."""
        first, end = np.searchsorted(self._array("name_rows"), [rows.start, rows.stop])
        return bool(first < end)

    def named(self) -> NDArray[np.bool_]:
        """Tell for each row whether its image has a name; the old content of a changed file has no name."""
        has_name = np.zeros(len(self), bool)
        has_name[self._array("name_rows")] = True
        return has_name

    def digest(self, rows: range | None = None) -> str:
        """Compute the sha256 over the ids of some rows, or over all ids and names if no rows are given.

        The digest over everything is made from the recorded checksums of the arrays, so comparing it with a plan's digest reads
        no values. When the values are read later, they are compared with these checksums.
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


def printable(name: str) -> str:
    """Turn a name into one line that every output can show: escape bytes that are not UTF-8 and terminal control codes."""
    return "".join(map(_visible, name))


def first_names(names: Sequence[str], shown: int) -> str:
    """List the first `shown` names, printable, and say how many more there are.

    >>> first_names(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(printable, names[:shown])) + more


def _sha_order(shas: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sort the rows by the bytes of their ids."""
    words = shas.view(">u8")  # big-endian numbers are ordered as bytes are
    first = words[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    if (np.diff(first[order]) == 0).any():  # sha256 digests differ in their first eight bytes; made-up ids may not
        order = np.lexsort(words.T[::-1])
    return order.astype("<i8")


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # Python's stand-in for a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
