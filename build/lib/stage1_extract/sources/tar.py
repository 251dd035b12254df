"""Webdataset shards: images in uncompressed tar files, read where they lie. Nothing is unpacked, names are never paths.

The headers are read once, when a source is opened. What they may claim is bounded by what lies on the disk: a member
takes at least 512 bytes there and less than that in memory, and no header may be larger than MAX_HEADER_BYTES.
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
from stage1_extract.sources.images import MAX_IMAGE_BYTES, has_image_suffix

MAX_HEADER_BYTES = 1 << 20
"""Of one header, extended ones included."""
MAX_PADDING_BYTES = 1 << 20
"""Zeros after the end mark, at most; tar pads to 10 kB."""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of compressed files."""
_NO_FILE = -1


class TarSource(ImageSource):
    """Images are members with an image's suffix; short names are their paths in the tar, without a leading `./`."""

    def __init__(self, shards: Mapping[str, Path]) -> None:
        """From tar files by name; raises UnusableImages (exit 2) and DamagedArchive (exit 4)."""
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
        self._catalogue = Catalogue(shorts, lambda place: f"{self._names[self._shard_of[place]]}/{shorts[place]}")

    def names(self) -> list[str]:
        """Shards by name, members as they lie in them."""
        return self._catalogue.names()

    def place(self, name: str) -> int:
        """Where a member lies, counted over all shards; 0 for what cannot be found."""
        try:
            return self._find(name)
        except BadImage:
            return 0

    def read(self, name: str) -> bytes:
        """A member's bytes. BadImage for a link, a device or a pipe, and for a name that several members have."""
        place = self._find(name)
        shard, offset, size = self._names[self._shard_of[place]], self._offsets[place], self._sizes[place]
        if size == _NO_FILE:
            raise BadImage("not_a_regular_file", f"{name} in {shard}")
        if size > MAX_IMAGE_BYTES:
            raise BadImage("too_many_bytes", f"{name} ({size:,}, at most {MAX_IMAGE_BYTES:,})")
        if size == 0:
            raise BadImage("empty_file", name)
        return _read_at(self._shards[shard], offset, size, name)

    def _find(self, name: str) -> int:
        place = self._catalogue.find(name)
        if place is not None:
            return place
        shard, slash, member = _split(name)
        place = self._catalogue.find(member) if shard in self._shards else None
        if place is None or not slash or self._names[self._shard_of[place]] != shard:
            raise BadImage("missing_file", name)
        return place


def _split(name: str) -> tuple[str, str, str]:
    """`a/b.tar/c/d.png` -> `a/b.tar`, `/`, `c/d.png`."""
    head, slash, member = name.partition(".tar/")
    return head + ".tar", slash, member


def _read_at(path: Path, offset: int, size: int, name: str) -> bytes:
    # Opened for each read, about 10 us: no descriptor to share between threads, to hand to workers, or to run out of.
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
    """Name, offset and size of every member with an image's suffix, from the headers alone."""
    try:
        with path.open("rb") as file:
            _require_uncompressed(path, file)
            with _headers_of(file) as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # it keeps every header otherwise: 1 kB each
                    name = member.name.removeprefix("./")
                    if member.size < 0:
                        raise tarfile.ReadError("a negative size")
                    if has_image_suffix(name) and not member.isdir():
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
    """Where tarfile stops, nothing may follow but zeros: it stops as quietly at a damaged header."""
    tail = os.pread(file.fileno(), MAX_PADDING_BYTES + 1, offset)
    if len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end mark at byte {offset:,}, so its end is missing")
    if any(tail) or len(tail) > MAX_PADDING_BYTES:
        raise tarfile.ReadError(f"more data from byte {offset:,} on, behind a damaged header or an end mark")


class _Headers:
    """A tar file as tarfile may see it: forwards only, a header at a time."""

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
