"""The things in the harder scenes, and the phrases that name objects by their attributes."""

from dataclasses import dataclass, replace

import numpy as np

from stage1_extract.demo.hard.shapes import EDGES, shape_cover
from stage1_extract.demo.questions import plural
from stage1_extract.demo.scenes import GRID, MIN_SHARE


@dataclass(frozen=True)
class HardObject:
    """One coloured shape, in a square block of patches."""

    color: str
    shape: str
    size: str
    """`tiny` (1 patch), `small` (2 x 2) or `large` (3 x 3)."""
    texture: str
    """`plain`, `striped` or `dotted`; only large objects have a texture."""
    digit: str | None
    """The digit in the middle patch, on some large objects."""
    row: int
    """Row of the block's first patch."""
    column: int
    """Column of the block's first patch."""
    shift: tuple[int, int]
    """Pixels by which the object is moved down and right in its block."""

    @property
    def edge(self) -> int:
        """Edge of the block, in patches."""
        return EDGES[self.size]

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the block's middle, in patches."""
        return self.row + self.edge / 2, self.column + self.edge / 2

    @property
    def middle(self) -> int:
        """Raster index of the patch that stands for the object: the only, the first or the middle one; it holds the digit."""
        inset = (self.edge - 1) // 2
        return (self.row + inset) * GRID + self.column + inset

    def cover(self) -> dict[int, float]:
        """Return the share of the pixels that the object covers of each patch of its block, by raster index."""
        rows, columns = np.divmod(np.arange(self.edge**2), self.edge)
        block = (self.row + rows) * GRID + self.column + columns
        return dict(zip(block.tolist(), shape_cover(self.shape, self.size, *self.shift).tolist(), strict=True))

    def patches(self) -> list[int]:
        """Return the raster indices of the patches that the object covers."""
        return [patch for patch, share in self.cover().items() if share >= MIN_SHARE]


@dataclass(frozen=True)
class Sign:
    """A plate of three patches with a word, one letter on each patch."""

    color: str
    word: str
    row: int
    column: int
    """Column of the first letter."""
    shift: int
    """Pixels by which the letters are moved right in their patches."""

    def patches(self) -> list[int]:
        """Return the raster indices of the three patches."""
        first = self.row * GRID + self.column
        return list(range(first, first + len(self.word)))


@dataclass(frozen=True)
class Distractor:
    """Something that draws attention, and that no question is about."""

    kind: str
    """`confetti`, `checkerboard` or `scribble`."""
    color: str | None
    """Its colour; None for confetti, which has all colours."""
    row: int
    column: int
    height: int
    """Rows of patches that it covers."""
    width: int
    """Columns of patches that it covers."""
    seed: int
    """Seed of its pixels."""

    def patches(self) -> list[int]:
        """Return the raster indices of its patches."""
        return [
            (self.row + down) * GRID + self.column + right for down in range(self.height) for right in range(self.width)
        ]


@dataclass(frozen=True)
class Phrase:
    """Words that name objects by their attributes; an attribute that is None is not named."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None
    texture: str | None = None

    def __str__(self) -> str:
        return self._with(self.shape or "object")

    @property
    def plural(self) -> str:
        """The same phrase for several objects."""
        return self._with(plural(self.shape or "object"))

    def _with(self, noun: str) -> str:
        return " ".join(word for word in (self.texture, self.size, self.color, noun) if word)

    def fits(self, item: HardObject) -> bool:
        """Tell whether an object has every attribute that is named."""
        return (
            self.color in (None, item.color)
            and self.shape in (None, item.shape)
            and self.size in (None, item.size)
            and self.texture in (None, item.texture)
        )

    def of(self, objects: tuple[HardObject, ...]) -> list[HardObject]:
        """List the objects that have every attribute that is named."""
        return [item for item in objects if self.fits(item)]


@dataclass(frozen=True)
class Layout:
    """What is in a scene."""

    objects: tuple[HardObject, ...]
    signs: tuple[Sign, ...]
    distractors: tuple[Distractor, ...]

    def shown_by(self, kept: set[int]) -> "Layout":
        """Return what some patches show: an object by any of its patches, a digit by its own, a word by all three."""
        objects = tuple(
            item if item.middle in kept else replace(item, digit=None)
            for item in self.objects
            if not kept.isdisjoint(item.patches())
        )
        return replace(
            self, objects=objects, signs=tuple(sign for sign in self.signs if kept.issuperset(sign.patches()))
        )
