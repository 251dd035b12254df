"""Hugging Face datasets in parquet files: images in a column of `{bytes, path}`, read by row groups where they lie.

Needs pyarrow (extra `[parquet]`), which reads in a process of its own (parquet_process.py). A row group is the smallest part
that can be read: the metadata must promise at most MAX_ROW_GROUP_BYTES of it before it is opened, and reading stops where it
turns out to hold more.
"""

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from configs.progress import ProgressBar
from stage1_extract.errors import BadImage, DamagedArchive, ReaderMissing, UnusableImages
from stage1_extract.sources.image_source import MAX_IMAGES, Catalogue, ImageSource
from stage1_extract.sources.parquet_process import ParquetProcess, ParquetUnreadable

MAX_ROW_GROUP_BYTES = 1 << 30
"""Uncompressed bytes of the images of one row group, at most."""
MAX_NAMES_BYTES = 1 << 26
"""The same for their paths."""
MAX_NAME_LENGTH = 4096
"""Longest path that is taken for a name, in characters: as in questions."""
CACHE_BYTES = 1 << 29
"""Row groups that are kept, in bytes; the one read last always is."""
Images = list[bytes | None]


class ParquetSource(ImageSource):
    """Images are rows; short names are their `path`."""

    def __init__(self, files: Mapping[str, Path], column: str | None) -> None:
        """From parquet files by name; `column` holds the images, None for the only one that can.

        Raises ReaderMissing (exit 5), UnusableImages (exit 2) and DamagedArchive (exit 4).
        """
        self._files = dict(files)
        self._firsts: dict[str, int] = {}
        """Place of each file's first row."""
        self._groups = array("q")
        """Place of each row group's first row."""
        self._where: list[tuple[str, int]] = []
        """File and number of each row group."""
        self._columns: dict[str, str] = {}
        self._lock = Lock()
        self._cached: OrderedDict[int, Images] = OrderedDict()
        self._rows = 0
        _require_pyarrow()
        self._process = ParquetProcess()
        paths = self._index(column)
        self._catalogue = Catalogue(paths, self._long_name)

    def names(self) -> list[str]:
        """Files by name, their rows in order."""
        return self._catalogue.names()

    def place(self, name: str) -> int:
        """The row, counted over all files; 0 for what cannot be found."""
        try:
            return self._find(name)
        except BadImage:
            return 0

    def read(self, name: str) -> bytes:
        """A cell's bytes; BadImage for an empty one, and for a row group that cannot be decoded."""
        place = self._find(name)
        group = bisect_right(self._groups, place) - 1
        with self._lock:
            data = self._images(group, name)[place - self._groups[group]]
        if not data:
            raise BadImage("empty_file", name)
        return data

    def _index(self, column: str | None) -> Iterator[str | None]:
        """The path of every row; the places of files and row groups are noted on the way."""
        for name, path in ProgressBar(self._files.items(), "index", unit="parquet files"):
            self._firsts[name] = self._rows
            try:
                outline = self._process.outline(path)
                self._columns[name] = _image_column(path, outline["fields"], column)
                for number, group in enumerate(outline["groups"]):
                    yield from self._index_group(name, number, group)
            except (ParquetUnreadable, UnicodeDecodeError, KeyError) as error:
                raise DamagedArchive(
                    f"expected a sound parquet file at {path}, got: {error}; download it again, or leave it out of data.images"
                ) from None

    def _index_group(self, name: str, number: int, group: Mapping[str, Any]) -> Iterator[str | None]:
        rows, column, path = group["rows"], self._columns[name], self._files[name]
        _require_size(path, number, group["bytes"], f"{column}.bytes", MAX_ROW_GROUP_BYTES)
        _require_size(path, number, group["bytes"], f"{column}.path", MAX_NAMES_BYTES)
        if self._rows + rows > MAX_IMAGES:
            raise UnusableImages(
                f"expected at most {MAX_IMAGES:,} images, there are more: split them into several inputs"
            )
        if rows:
            self._groups.append(self._rows)
            self._where.append((name, number))
        self._rows += rows
        found = 0
        for given in _cells(self._process, path, number, f"{column}.path"):
            found += 1
            short = None if given is None else given.decode()
            yield short if short and len(short) <= MAX_NAME_LENGTH else None
        if found != rows:
            raise ParquetUnreadable(f"{found} rows instead of {rows} in row group {number}")

    def _find(self, name: str) -> int:
        place = self._catalogue.find(name)
        if place is not None:
            return place
        file, _, row = name.rpartition("/")
        if file in self._files and row.isdecimal() and row == str(int(row[:20])):
            place = self._firsts[file] + int(row)
            if place < self._rows and self._file_of(place) == file:
                return place
        raise BadImage("missing_file", name)

    def _long_name(self, place: int) -> str:
        file = self._file_of(place)
        return f"{file}/{place - self._firsts[file]}"

    def _file_of(self, place: int) -> str:
        return self._where[bisect_right(self._groups, place) - 1][0]

    def _images(self, group: int, name: str) -> Images:
        """The images of a row group, kept for the next; called with the lock held."""
        if group not in self._cached:
            self._cached[group] = self._load(group, name)
            while len(self._cached) > 1 and sum(map(_size, self._cached.values())) > CACHE_BYTES:
                self._cached.popitem(last=False)
        self._cached.move_to_end(group)
        return self._cached[group]

    def _load(self, group: int, name: str) -> Images:
        file_name, number = self._where[group]
        images: Images = []
        left = MAX_ROW_GROUP_BYTES
        try:
            for data in _cells(self._process, self._files[file_name], number, f"{self._columns[file_name]}.bytes"):
                left -= len(data or b"")
                if left < 0:
                    raise BadImage(
                        "too_many_bytes", f"{name} (row group {number} of {file_name} holds more than it says)"
                    )
                images.append(data)
        except ParquetUnreadable as error:
            raise BadImage("unreadable", f"{name} in {file_name} ({error})") from None
        rows = (self._groups[group + 1] if group + 1 < len(self._groups) else self._rows) - self._groups[group]
        if len(images) != rows:
            raise BadImage("unreadable", f"{name} ({file_name} has changed)")
        return images


def _require_pyarrow() -> None:
    try:
        found = find_spec("pyarrow.parquet")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ReaderMissing("expected pyarrow to read parquet files: pip install 'encode-once[parquet]'")


def _cells(process: ParquetProcess, path: Path, group: int, leaf: str) -> Iterator[bytes | None]:
    return process.cells(path, group, leaf)


def _image_column(path: Path, fields: Sequence[Mapping[str, Any]], column: str | None) -> str:
    """The column of images; UnusableImages where it is none, or where there are several and none is named."""
    found = [field["name"] for field in fields if field["images"]]
    if column is not None and column in found:
        return column
    if column is None and len(found) == 1:
        return found[0]
    there = ", ".join(f"{field['name']}: {field['type']}" for field in fields)
    if column is None and found:
        raise UnusableImages(
            f"expected one column of images in {path}, there are {', '.join(found)}: set data.image_column"
        )
    wanted = "a column" if column is None else f"the column {column}"
    raise UnusableImages(f"expected {wanted} of {{bytes: binary, path: string}} in {path}, its columns are {there}")


def _require_size(path: Path, group: int, sizes: Mapping[str, int], leaf: str, limit: int) -> None:
    """Refuse, from the metadata alone, a row group that would take too much memory."""
    if not 0 <= sizes[leaf] <= limit:
        raise UnusableImages(
            f"expected at most {limit:,} bytes of {leaf} in a row group, row group {group} of {path} has {sizes[leaf]:,}: "
            "write it again with smaller ones, such as row_group_size=100"
        )


def _size(images: Images) -> int:
    return sum(len(data or b"") for data in images)
