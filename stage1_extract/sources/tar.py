"""Images in uncompressed tar files (webdataset shards), read in place. Nothing is unpacked, and no name is used as a path.

The headers are read once, when a source is opened. The memory that they take is bounded by the size of the files: a member
takes at least 512 bytes on the disk and less in memory, and no header may be larger than MAX_HEADER_BYTES.
"""

import os
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from configs.progress import ProgressBar
from stage1_extract.errors import BadImage, DamagedArchive, UnusableImages
from stage1_extract.sources.image_source import Catalogue, ImageSource
from stage1_extract.sources.images import MAX_IMAGE_BYTES, has_image_suffix, is_companion

MAX_HEADER_BYTES = 1 << 20
"""Largest header that is read, extended headers included."""
MAX_PADDING_BYTES = 1 << 20
"""Most zeros after the end mark; tar pads to 10 kB."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compression methods by the first bytes of a file."""
_NO_FILE = -1
"""Size that stands for a member that is not a regular file."""


class TarSource(ImageSource):
    """Tar files; images are the members with an image's suffix. A short name is a path in the tar, without a leading `./`."""

    def __init__(self, shards: Mapping[str, Path]) -> None:
        """Index the members of tar files, given by name.

        Raises UnusableImages (exit 2) for a compressed file, and DamagedArchive (exit 4).
        """
        self._shards = dict(shards)
        self._names = list(self._shards)
        self._offsets, self._sizes, self._shard_of = array("q"), array("q"), array("i")
        shorts: list[str] = []
        for number, path in enumerate(ProgressBar(self._shards.values(), "index", unit="tar files")):
            for name, offset, size in _image_members(path):
                shorts.append(name)
                self._offsets.append(offset)
                self._sizes.append(size)
                self._shard_of.append(number)

        def long_name(position: int) -> str:
            return f"{self._names[self._shard_of[position]]}/{shorts[position]}"

        self._catalogue = Catalogue(shorts, long_name)

    def names(self) -> list[str]:
        """List the members of each shard after the other, in the order in which they lie there."""
        return self._catalogue.names()

    def position(self, name: str) -> int:
        """Return the number of a member, counted over all shards; 0 for a name that cannot be found."""
        try:
            return self._find(name)
        except BadImage:
            return 0

    def read(self, name: str) -> bytes:
        """Read the bytes of a member; raises BadImage for a link, a device or a pipe, and for a name of several members."""
        position = self._find(name)
        shard, offset, size = self._names[self._shard_of[position]], self._offsets[position], self._sizes[position]
        if size == _NO_FILE:
            raise BadImage("not_a_regular_file", f"{name} in {shard}")
        if size > MAX_IMAGE_BYTES:
            raise BadImage("too_many_bytes", f"{name} ({size:,}, at most {MAX_IMAGE_BYTES:,})")
        if size == 0:
            raise BadImage("empty_file", name)
        return _read_at(self._shards[shard], offset, size, name)

    def _find(self, name: str) -> int:
        """Return the position of a name, which may be a long name; raises BadImage."""
        position = self._catalogue.find(name)
        if position is not None:
            return position
        shard, slash, member = _split(name)
        position = self._catalogue.find(member) if shard in self._shards else None
        if position is None or not slash or self._names[self._shard_of[position]] != shard:
            raise BadImage("missing_file", name)
        return position


def _split(name: str) -> tuple[str, str, str]:
    """Split a long name after the shard: `a/b.tar/c/d.png` -> `a/b.tar`, `/`, `c/d.png`."""
    head, slash, member = name.partition(".tar/")
    return head + ".tar", slash, member


def _read_at(path: Path, offset: int, size: int, name: str) -> bytes:
    # The file is opened for each read, which takes about 10 us: threads and workers share no descriptor, and none runs out.
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BadImage("unreadable", f"{name} in {path} ({error.strerror})") from None
    if len(data) != size:
        raise BadImage("unreadable", f"{name} ({path} became shorter)")
    return data


def _image_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of every member with an image's suffix, from the headers alone.

    macOS's companions of files are no images.
    """
    try:
        with path.open("rb") as file:
            _require_uncompressed(path, file)
            with _headers_of(file) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # tarfile would keep every header, 1 kB each
                    name = member.name.removeprefix("./")
                    if member.size < 0:
                        raise tarfile.ReadError("a negative size")
                    if has_image_suffix(name) and not is_companion(name) and not member.isdir():
                        is_file = member.isreg() and not member.issparse()
                        yield name, member.offset_data, member.size if is_file else _NO_FILE
                _require_end(file, tar.offset)
    except OSError as error:
        raise DamagedArchive(f"expected a readable tar file at {path}, got {error.strerror or error}") from None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise DamagedArchive(f"expected a sound tar file at {path}, got: {error}; copy or make it again") from None


def _headers_of(file: BinaryIO) -> Any:
    forwards: Any = _Headers(file)
    return tarfile.TarFile(fileobj=forwards)


def _require_uncompressed(path: Path, file: BinaryIO) -> None:
    start = file.read(8)
    file.seek(0)
    for magic, method in COMPRESSED.items():
        if start.startswith(magic):
            raise UnusableImages(
                f"expected an uncompressed tar, {path} is compressed with {method}: uncompress it first"
            )


def _require_end(file: BinaryIO, offset: int) -> None:
    """Require that only zeros follow where tarfile stopped, as tarfile also stops, without an error, at a damaged header."""
    tail = os.pread(file.fileno(), MAX_PADDING_BYTES + 1, offset)
    if len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset:,}, so its end is missing")
    if any(tail) or len(tail) > MAX_PADDING_BYTES:
        raise tarfile.ReadError(f"more data from byte {offset:,} on, behind a damaged header or an end mark")


class _Headers:
    """The view of a tar file that tarfile gets: it can only go forwards, and read one header at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int) -> int:
        if offset < self._file.tell() - 1:
            raise tarfile.ReadError("a header that leads backwards")
        return self._file.seek(offset)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes, more than {MAX_HEADER_BYTES:,}")
        return self._file.read(size)
