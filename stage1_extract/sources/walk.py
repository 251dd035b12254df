"""List every file below an image root, and report what was not looked at: links that lead out or nowhere, closed folders."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from configs.counted import agreeing, counted
from stage1_extract.errors import UnusableImages
from stage1_extract.sources.images import has_image_suffix
from store.layout.ids import printable

MAX_WAYS = 1000
"""Most ways by which links may lead to one folder: folders that are linked to each other would be walked without end."""
SHOWN = 3
"""Number of names that a note lists."""
_Identity = tuple[int, int]
"""Device and inode of a folder."""


@dataclass
class Walk:
    """One walk through a folder. Links that stay inside the folder are followed; with `follow_links`, all links are."""

    root: Path
    follow_links: bool
    outside: list[str] = field(default_factory=list)
    """Links that lead out of the root and are not followed."""
    nowhere: list[str] = field(default_factory=list)
    """Links to nothing, or to themselves, that may have been meant for images."""
    closed: list[str] = field(default_factory=list)
    """Folders that the operating system does not list."""
    _ways: Counter[_Identity] = field(default_factory=Counter)
    """Number of links that led to each folder so far."""

    def files(self) -> Iterator[str]:
        """Yield the path of each file below the root, with `/`; a link to a folder that contains the link is skipped.

        Raises UnusableImages (exit 2) where folders are linked to each other without end.
        """
        waiting: list[tuple[str, frozenset[_Identity | None]]] = [("", frozenset())]
        while waiting:
            folder, above = waiting.pop()
            try:
                here = above | {_folder(self.root / folder)}
                with os.scandir(self.root / folder) as listed:
                    entries = list(listed)
            except OSError as error:
                self.closed.append(f"{folder or '.'}: {error.strerror}")
                continue
            for entry in entries:
                name = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and self._is_way(name, here)):
                    waiting.append((f"{name}/", here))
                elif not entry.is_symlink() or self._is_file(name):
                    yield name

    def notes(self) -> list[str]:
        """Return sentences about what was not looked at, with numbers and examples."""
        notes: list[str] = []
        if links := len(self.outside):
            notes.append(
                f"{counted(links, 'link')} out of {self.root} {agreeing(links, 'is', 'are')} not followed "
                f"({first(self.outside)}): data.follow_links: true follows such links"
            )
        if self.nowhere:
            leads = (
                f"{counted(len(self.nowhere), 'link')} in {self.root} {agreeing(len(self.nowhere), 'leads', 'lead')}"
            )
            notes.append(f"{leads} to nothing ({first(self.nowhere)})")
        if self.closed:
            notes.append(
                f"{counted(len(self.closed), 'folder')} in {self.root} cannot be listed ({first(self.closed)})"
            )
        return notes

    def _is_way(self, link: str, here: frozenset[_Identity | None]) -> bool:
        """Return whether a link leads to a folder whose files must be listed, too."""
        target = _folder(self.root / link)
        if target is None or target in here:
            return False
        if target not in self._ways and self._leads_out(link):
            self.outside.append(link)
            return False
        self._ways[target] += 1
        if self._ways[target] > MAX_WAYS:
            raise UnusableImages(
                f"expected at most {MAX_WAYS} ways by links to one folder below {self.root}, there are more to "
                f"{printable(link)}: remove links, above all those of folders that lead to each other"
            )
        return True

    def _is_file(self, link: str) -> bool:
        """Return whether a link counts as a file: it leads to no folder, and stays inside the root or has an image's name."""
        if _folder(self.root / link) is not None:
            return False
        may_be_image = has_image_suffix(link) or not Path(link).suffix
        if may_be_image and self._leads_out(link):
            self.outside.append(link)
            return has_image_suffix(link)
        if may_be_image and not os.access(self.root / link, os.F_OK):
            self.nowhere.append(link)
            return has_image_suffix(link)
        return may_be_image or not self._leads_out(link)

    def _leads_out(self, link: str) -> bool:
        return not self.follow_links and not Path(os.path.realpath(self.root / link)).is_relative_to(self._real_root)

    @cached_property
    def _real_root(self) -> str:
        return os.path.realpath(self.root)


def first(names: list[str]) -> str:
    """Join the first few names, sorted, for a message."""
    return ", ".join(map(printable, sorted(names)[:SHOWN])) + (", …" if len(names) > SHOWN else "")


def _folder(path: Path) -> _Identity | None:
    """Return the identity of a folder, which is equal by every way to it; None for a path that leads to no folder."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
