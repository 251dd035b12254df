"""Files of an image folder: which formats are decoded, and which paths an image's name may lead to."""

import os
from pathlib import Path

from PIL import features

# Checked in this order because Pillow warns about a feature that it does not know.
_HAS_AVIF = "avif" in features.modules and features.check("avif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", *(("AVIF",) if _HAS_AVIF else ()))
"""Formats that are decoded; AVIF only if this Pillow can decode it. Of an animation, the first frame is decoded."""


class OutsideRoot(Exception):
    """An image's name leads out of the image root."""

    def __init__(self, link: str | None) -> None:
        super().__init__(link)
        self.link = link
        """Path below the root of the link that leads out of it; None where the name itself does, by `..`."""


def locate(root: Path, name: str, follow_links: bool) -> Path:
    """Return the path of an image below `root`; the file need not exist.

    Links that stay inside the root are followed; with `follow_links`, all links are followed. Raises OutsideRoot for a name
    that leads out of the root.
    """
    if follow_links:
        inside = os.path.normpath(name)  # because `..` goes back along the name, not along a link
        if Path(name).is_absolute() or inside.split("/")[0] == ".." or "\0" in name:
            raise OutsideRoot(None)
        return root / inside
    try:
        path = (root / name).resolve()
        if path.is_relative_to(root.resolve()):
            return path
        link = _link_out_of(root, name)
    except (OSError, ValueError, RuntimeError):
        link = None
    raise OutsideRoot(link)


def relative_name(root: Path, name: str) -> str:
    """Return the name, relative to `root`, of an image whose absolute path lies below `root`; any other name as it is.

    >>> relative_name(Path("/data/images"), "/data/images/a/b.png"), relative_name(Path("/data/images"), "/etc/b.png")
    ('a/b.png', '/etc/b.png')
    """
    if not name.startswith("/") or "\0" in name:
        return name
    path = Path(os.path.normpath(name))
    for base in (Path(os.path.abspath(root)), root.resolve()):  # noqa: PTH100 (resolves `..` without following links)
        if path.is_relative_to(base) and path != base:
            return path.relative_to(base).as_posix()
    return name


def _link_out_of(root: Path, name: str) -> str | None:
    """Return the first link on the path of an image that leads out of the root; None where `..` leads out, without a link."""
    path = root
    for part in Path(name).parts:
        path = path / part
        if part == ".." or not path.absolute().is_relative_to(root.absolute()):
            return None
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            return path.relative_to(root).as_posix()
    return None
