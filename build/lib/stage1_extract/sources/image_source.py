"""What every kind of input can do: name its images, and give the bytes of one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from stage1_extract.errors import BadImage, UnusableImages

MAX_IMAGES = 20_000_000
"""Images of one input, at most; an archive of a few bytes may claim any number, and every name takes memory."""
_AMBIGUOUS = -1


class ImageSource(ABC):
    """Images by name. Threads may share one; a spawned worker opens its own."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every image, in an order that never changes."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of an image; raises BadImage."""

    @abstractmethod
    def place(self, name: str) -> int:
        """A number that grows along the files: many images are read fastest in its order."""


class Catalogue:
    """The names of images in archives.

    An image's name is its short one (the path that the archive gives it) where no other image has it, otherwise
    `<archive>/<what is unique there>`. That long name is understood for every image.
    """

    def __init__(self, shorts: Iterable[str | None], long_name: Callable[[int], str]) -> None:
        """`shorts` are the short names in the order of their places, None where an image has none; `long_name` of a place."""
        self._places: dict[str, int] = {}
        self._names: list[str | None] = []
        for place, short in enumerate(shorts):
            if place == MAX_IMAGES:
                raise UnusableImages(
                    f"expected at most {MAX_IMAGES:,} images, there are more: split them into several inputs"
                )
            self._names.append(short)
            if short is not None:
                self._places[short] = _AMBIGUOUS if short in self._places else place
        for place, short in enumerate(self._names):
            if short is None or self._places[short] == _AMBIGUOUS:
                name = long_name(place)
                self._names[place] = name
                self._places[name] = _AMBIGUOUS if name in self._places else place

    def names(self) -> list[str]:
        """All names, in the order of their places; one that two images share is named once, and cannot be found."""
        return list(dict.fromkeys(name for name in self._names if name is not None))

    def find(self, name: str) -> int | None:
        """The place of a name, None for one that is neither short nor listed; BadImage for one that means several images."""
        place = self._places.get(name)
        if place == _AMBIGUOUS:
            raise BadImage("ambiguous_name", name)
        return place
