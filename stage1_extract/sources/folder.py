"""Images as files in a folder."""

import logging
from pathlib import Path

from configs.counted import agreeing, counted
from stage1_extract.sources.image_source import ImageSource
from stage1_extract.sources.images import has_image_suffix, image_format, is_companion, read_image_bytes, read_start
from stage1_extract.sources.walk import Walk, first

_log = logging.getLogger(__name__)


class FolderSource(ImageSource):
    """A folder of image files; an image's name is its path below the folder, with `/`."""

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self._root = root
        self._follow_links = follow_links

    def names(self) -> list[str]:
        """List, sorted, every file with an image's suffix, and every file without a suffix that begins like an image.

        Warns of links that are not followed, of images that have the suffix of another kind of file, and of macOS's
        companions of files.
        """
        walk = Walk(self._root, self._follow_links)
        names: list[str] = []
        misnamed: list[str] = []
        companions = 0
        for name in walk.files():
            if is_companion(name):
                companions += 1
            elif has_image_suffix(name):
                names.append(name)
            elif image_format(read_start(self._root / name)):
                (misnamed if Path(name).suffix else names).append(name)
        notes = walk.notes()
        if companions:
            notes.append(
                f"{counted(companions, 'file')} of macOS in {self._root}, named ._…, {_are(companions)} left out"
            )
        if misnamed:
            notes.append(
                f"{counted(len(misnamed), 'file')} in {self._root} with an image's content and another file's suffix "
                f"{_are(len(misnamed))} left out ({first(misnamed)}): rename such files, or name them in data.questions"
            )
        for note in notes:
            _log.warning("note: %s", note)
        return sorted(names)

    def read(self, name: str) -> bytes:
        """Read the bytes of a file; raises BadImage for a path that leads out of the folder or to no regular file."""
        return read_image_bytes(self._root, name, self._follow_links)

    def position(self, name: str) -> int:
        """Return 0 for every name, as files can be read in any order equally fast."""
        return 0


def _are(files: int) -> str:
    return agreeing(files, "is", "are")
