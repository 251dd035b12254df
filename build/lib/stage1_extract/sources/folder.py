"""A folder of image files."""

import logging
from pathlib import Path

from stage1_extract.sources.image_source import ImageSource
from stage1_extract.sources.images import has_image_suffix, image_format, read_image_bytes, read_start
from stage1_extract.sources.walk import Walk, first

_log = logging.getLogger(__name__)


class FolderSource(ImageSource):
    """Images are files; their names are paths below the folder, with `/`."""

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self._root = root
        self._follow_links = follow_links

    def names(self) -> list[str]:
        """Every file with an image's suffix, or without a suffix and with an image's first bytes, sorted.

        Warns of links that are not followed, and of images whose suffix is another file's.
        """
        walk = Walk(self._root, self._follow_links)
        names: list[str] = []
        misnamed: list[str] = []
        for name in walk.files():
            if has_image_suffix(name):
                names.append(name)
            elif image_format(read_start(self._root / name)):
                (misnamed if Path(name).suffix else names).append(name)
        notes = walk.notes()
        if misnamed:
            notes.append(
                f"{len(misnamed):,} files in {self._root} have an image's content and another file's suffix, and are left "
                f"out ({first(misnamed)}): rename them, or name them in data.questions"
            )
        for note in notes:
            _log.warning("note: %s", note)
        return sorted(names)

    def read(self, name: str) -> bytes:
        """The file's bytes; BadImage for a path out of the folder and for all that is no file."""
        return read_image_bytes(self._root, name, self._follow_links)

    def place(self, name: str) -> int:
        """Any order is as fast."""
        return 0
