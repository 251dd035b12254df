"""The interface of every kind of input: it names its images, and reads the bytes of an image."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from stage1_extract.errors import BadImage, UnusableImages

MAX_IMAGES = 20_000_000
"""Largest number of images of one input: an archive of a few bytes may claim any number, and every name takes memory."""
_AMBIGUOUS = -1


class ImageSource(ABC):
    """Images by name. Threads may share a source; a spawned worker opens its own."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the names of all images, in an order that never changes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read the bytes of an image; raises BadImage where that is impossible."""

    @abstractmethod
    def position(self, name: str) -> int:
        """Return the position of an image in the files; many images are read fastest in the order of their positions."""


class Catalogue:
    """The names of images in archives.

    An image's name is its short name (the path that the archive gives it) if no other image has the same short name, and
    otherwise its long name, `<archive>/<what is unique in the archive>`. Every image can be found by its long name, too.
    """

    def __init__(self, shorts: Iterable[str | None], long_name: Callable[[int], str]) -> None:
        """Index the names.

        Args:
            shorts: Short name of each image, in the order of their positions; None where an image has none.
            long_name: Returns the long name of the image at a position.

        Raises:
            UnusableImages: There are more than MAX_IMAGES images (exit 2).

        """
        self._positions: dict[str, int] = {}
        self._names: list[str | None] = []
        for position, short in enumerate(shorts):
            if position == MAX_IMAGES:
                raise UnusableImages(
                    f"expected at most {MAX_IMAGES:,} images, there are more: split them into several inputs"
                )
            self._names.append(short)
            if short is not None:
                self._positions[short] = _AMBIGUOUS if short in self._positions else position
        for position, short in enumerate(self._names):
            if short is None or self._positions[short] == _AMBIGUOUS:
                name = long_name(position)
                self._names[position] = name
                self._positions[name] = _AMBIGUOUS if name in self._positions else position

    def names(self) -> list[str]:
        """List all names in the order of their positions; a name that two images share is listed once, and cannot be found."""
        return list(dict.fromkeys(name for name in self._names if name is not None))

    def find(self, name: str) -> int | None:
        """Return the position of a name; None for a name that is neither a short name nor listed.

        Raises BadImage for a name that several images have.
        """
        position = self._positions.get(name)
        if position == _AMBIGUOUS:
            raise BadImage("ambiguous_name", name)
        return position
