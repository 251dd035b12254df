"""Images in parquet files, as Hugging Face datasets keep them: in a column of `{bytes, path}`, read by row groups in place.

This needs pyarrow (extra `[parquet]`), which reads in a process of its own (parquet_process.py). A row group is the smallest
part that can be read. It is opened only if the metadata promises at most MAX_ROW_GROUP_BYTES, and reading stops if the group
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
"""Most uncompressed bytes of the images of one row group."""
MAX_NAMES_BYTES = 1 << 26
"""Most uncompressed bytes of the paths of one row group."""
MAX_NAME_LENGTH = 4096
"""Longest path that is taken for a name, in characters; questions have the same limit."""
CACHE_BYTES = 1 << 29
"""Bytes of row groups that are kept in memory; the group that was read last is always kept."""
Images = list[bytes | None]
"""The images of one row group; None where a cell is null."""


class ParquetSource(ImageSource):
    """Parquet files, in which each row is an image; an image's short name is its `path`."""

    def __init__(self, files: Mapping[str, Path], column: str | None) -> None:
        """Index the names of all images.

        Args:
            files: Paths of the parquet files, by name.
            column: Column of the images; None for the only column that can hold images.

        Raises:
            ReaderMissing: pyarrow is not installed (exit 5).
            UnusableImages: There is no such column, or a row group is too large (exit 2).
            DamagedArchive: A file cannot be read (exit 4).

        """
        self._files = dict(files)
        self._firsts: dict[str, int] = {}
        """Position of each file's first row, counted over all files."""
        self._groups = array("q")
        """Position of each row group's first row."""
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
        """List the images of each file after the other, by their rows."""
        return self._catalogue.names()

    def position(self, name: str) -> int:
        """Return the row of an image, counted over all files; 0 for a name that cannot be found."""
        try:
            return self._find(name)
        except BadImage:
            return 0

    def read(self, name: str) -> bytes:
        """Read the bytes of an image; raises BadImage for an empty cell, and for a row group that cannot be decoded."""
        position = self._find(name)
        group = bisect_right(self._groups, position) - 1
        with self._lock:
            data = self._images(group, name)[position - self._groups[group]]
        if not data:
            raise BadImage("empty_file", name)
        return data

    def _index(self, column: str | None) -> Iterator[str | None]:
        """Yield the path of every row, and record the positions of files and row groups on the way."""
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
        count = 0
        for cell in _cells(self._process, path, number, f"{column}.path"):
            count += 1
            short = None if cell is None else cell.decode()
            yield short if short and len(short) <= MAX_NAME_LENGTH else None
        if count != rows:
            raise ParquetUnreadable(f"{count} rows instead of {rows} in row group {number}")

    def _find(self, name: str) -> int:
        """Return the position of a name, which may be a long name; raises BadImage."""
        position = self._catalogue.find(name)
        if position is not None:
            return position
        file, _, row = name.rpartition("/")
        if file in self._files and row.isdecimal() and row == str(int(row[:20])):
            position = self._firsts[file] + int(row)
            if position < self._rows and self._file_of(position) == file:
                return position
        raise BadImage("missing_file", name)

    def _long_name(self, position: int) -> str:
        file = self._file_of(position)
        return f"{file}/{position - self._firsts[file]}"

    def _file_of(self, position: int) -> str:
        return self._where[bisect_right(self._groups, position) - 1][0]

    def _images(self, group: int, name: str) -> Images:
        """Return the images of a row group and keep them in memory; the caller holds the lock."""
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
        spec = find_spec("pyarrow.parquet")
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ReaderMissing("expected pyarrow to read parquet files: pip install 'encode-once[parquet]'")


def _cells(process: ParquetProcess, path: Path, group: int, leaf: str) -> Iterator[bytes | None]:
    return process.cells(path, group, leaf)


def _image_column(path: Path, fields: Sequence[Mapping[str, Any]], column: str | None) -> str:
    """Return the column of images: `column`, or the only one.

    Raises UnusableImages (exit 2) where no column holds images, or several do and none is named.
    """
    candidates = [field["name"] for field in fields if field["images"]]
    if column is not None and column in candidates:
        return column
    if column is None and len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{field['name']}: {field['type']}" for field in fields)
    if column is None and candidates:
        raise UnusableImages(
            f"expected one column of images in {path}, there are {', '.join(candidates)}: set data.image_column"
        )
    wanted = "a column" if column is None else f"the column {column}"
    raise UnusableImages(f"expected {wanted} of {{bytes: binary, path: string}} in {path}, its columns are {listed}")


def _require_size(path: Path, group: int, sizes: Mapping[str, int], leaf: str, limit: int) -> None:
    """Refuse, from the metadata alone, a row group that would take too much memory."""
    if not 0 <= sizes[leaf] <= limit:
        raise UnusableImages(
            f"expected at most {limit:,} bytes of {leaf} in a row group, row group {group} of {path} has {sizes[leaf]:,}: "
            "write the file again with smaller row groups, such as row_group_size=100"
        )


def _size(images: Images) -> int:
    return sum(len(data or b"") for data in images)
