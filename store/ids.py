"""Which image is in which row: sha256 per row, and the names that users have for it.

One image may have many names. Names are kept as one utf-8 blob with offsets and a sorted index of hashes, so that
opening hundreds of thousands costs milliseconds and no dictionary.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

Arrays = dict[str, NDArray[Any]]
GROUP = "ids"


class ImageIds:
    """Rows, ids and names of a store."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    @classmethod
    def build(cls, images: Sequence[tuple[str, Sequence[str]]]) -> "ImageIds":
        """From (sha256 in hex, names) of every row."""
        names = [(name.encode(errors="surrogatepass"), row) for row, (_, given) in enumerate(images) for name in given]
        lengths = np.array([0, *(len(name) for name, _ in names)], np.int64)
        hashes = np.array([_hash(name) for name, _ in names], np.uint64)
        order = np.argsort(hashes, kind="stable")
        shas = b"".join(bytes.fromhex(sha) for sha, _ in images)
        return cls(
            {
                "sha256": np.frombuffer(shas, np.uint8).reshape(len(images), 32),
                "names_utf8": np.frombuffer(b"".join(name for name, _ in names), np.uint8),
                "name_offsets": np.cumsum(lengths),
                "name_rows": np.array([row for _, row in names], np.int64),
                "sorted_hashes": hashes[order],
                "sorted_names": order.astype(np.int64),
            }
        )

    @classmethod
    def read(cls, group: zarr.Group) -> "ImageIds":
        """From the `ids` group of a store."""
        return cls({name: np.asarray(array[...]) for name, array in group.arrays()})

    def write(self, parent: zarr.Group) -> None:
        """As the group `ids` of `parent`."""
        group = parent.create_group(GROUP)
        for name in sorted(self._arrays):
            write_whole(group, name, self._arrays[name])

    def __len__(self) -> int:
        return len(self._arrays["sha256"])

    def sha_of_row(self, row: int) -> str:
        """The image's id, in hex."""
        return self._arrays["sha256"][row].tobytes().hex()

    def row_of_sha(self, sha: str) -> int | None:
        """The row of an id, None if it is not in the store."""
        wanted = np.frombuffer(bytes.fromhex(sha), np.uint8)
        found = np.flatnonzero((self._arrays["sha256"] == wanted).all(axis=1))
        return int(found[0]) if len(found) else None

    def row_of_name(self, name: str) -> int | None:
        """The row of an image by one of its names, None if the store does not know the name."""
        encoded = name.encode(errors="surrogatepass")
        hashes = self._arrays["sorted_hashes"]
        wanted = np.uint64(_hash(encoded))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            number = int(self._arrays["sorted_names"][at])
            if self._name(number) == encoded:
                return int(self._arrays["name_rows"][number])
            at += 1
        return None

    def names(self, row: int) -> list[str]:
        """All names of a row, in the order they were given."""
        numbers = np.flatnonzero(self._arrays["name_rows"] == row)
        return [self._name(int(number)).decode(errors="surrogatepass") for number in numbers]

    def digest(self, rows: range | None = None) -> str:
        """sha256 over the ids of some rows; over everything, names included, without `rows`."""
        if rows is not None:
            return hashlib.sha256(self._arrays["sha256"][rows.start : rows.stop].tobytes()).hexdigest()
        digest = hashlib.sha256()
        for name in sorted(self._arrays):
            digest.update(name.encode() + b"\0" + self._arrays[name].tobytes())
        return digest.hexdigest()

    def _name(self, number: int) -> bytes:
        offsets = self._arrays["name_offsets"]
        return self._arrays["names_utf8"][offsets[number] : offsets[number + 1]].tobytes()


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
    """A name as text that any output takes: bytes that are not utf-8 are escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace") if _escaped(name) else name


def _escaped(name: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in name)


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
