"""Files of an image folder: which formats are decoded, and where a name may lead."""

import os
from pathlib import Path

from PIL import features

_HAS_AVIF = "avif" in features.modules and features.check("avif")  # Pillow warns of a feature that it does not know
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", *(("AVIF",) if _HAS_AVIF else ()))
"""Formats that are decoded, AVIF where this Pillow can; of an animation, the first frame."""


class OutsideRoot(Exception):
    """An image's name leads out of the image root."""

    def __init__(self, link: str | None) -> None:
        super().__init__(link)
        self.link = link
        """The link that leads out, by its path below the root; None where the name itself climbs."""


def locate(root: Path, name: str, follow_links: bool) -> Path:
    """Find the path of an image below `root`; it need not exist.

    Links that stay inside are followed, and with `follow_links` all of them. Raises OutsideRoot.
    """
    if follow_links:
        inside = os.path.normpath(name)  # a `..` goes back along the name, not along a link
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


def _link_out_of(root: Path, name: str) -> str | None:
    """The first link on the way to an image that leads out of the root; None where it climbs without one."""
    path = root
    for part in Path(name).parts:
        path = path / part
        if part == ".." or not path.absolute().is_relative_to(root.absolute()):
            return None
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            return path.relative_to(root).as_posix()
    return None
