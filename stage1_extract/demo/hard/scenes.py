"""Lay out and draw the harder scenes; a scene is a pure function of (seed, index) and of the amount of clutter."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stage1_extract.demo.hard.drawing import draw
from stage1_extract.demo.hard.glyphs import DIGITS, WORDS
from stage1_extract.demo.hard.objects import Distractor, HardObject, Layout, Sign
from stage1_extract.demo.hard.questions import askable
from stage1_extract.demo.hard.shapes import EDGES, JITTERS, TEXTURES
from stage1_extract.demo.scenes import COLORS, GRID, SHAPES

CELL = 4
"""Edge of a cell, in patches; every thing has a cell of its own."""
_CELLS = GRID // CELL
_SIZES, _SIZE_SHARES = tuple(EDGES), (0.4, 0.3, 0.3)
_DIGIT_SHARE = 0.4
"""Share of the large objects that carry a digit; these are plain, so that the digit can be read."""


@dataclass(frozen=True)
class Clutter:
    """Least and largest numbers of distractors in a scene."""

    confetti: tuple[int, int] = (4, 6)
    checkerboard: tuple[int, int] = (2, 4)
    scribble: tuple[int, int] = (2, 4)


CLUTTER = Clutter()
"""The clutter of the benchmark's scenes."""
VARIED_CLUTTER = Clutter((0, 9), (0, 5), (0, 5))
"""The clutter of the scenes that the checkpoints learn from: any amount, so that they know the benchmark's whatever it is."""


@dataclass(frozen=True)
class HardScene:
    """An image and what is in it."""

    image: Image.Image
    layout: Layout


def scene(seed: int, index: int) -> HardScene:
    """Draw scene number `index` of a seed of the benchmark."""
    layout = layout_of(seed, index, CLUTTER)
    return HardScene(Image.fromarray(pixels_of(layout, seed, index)), layout)


def pixels_of(layout: Layout, seed: int, index: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw a layout on the background of scene number `index` of a seed."""
    return draw(layout, np.random.default_rng([seed, index, 3]))


def layout_of(seed: int, index: int, clutter: Clutter) -> Layout:
    """Lay out scene number `index` of a seed, so that every kind of question can be asked about it."""
    rng = np.random.default_rng([seed, index, 2])
    while True:
        cells = iter(rng.permutation(_CELLS**2).tolist())
        objects = _objects(rng, [next(cells) for _ in range(rng.integers(6, 13))])
        colors = rng.permutation(list(COLORS))[: rng.integers(1, 3)].tolist()
        signs = tuple(_sign(rng, color, next(cells)) for color in colors)
        layout = Layout(objects, signs, ())
        if askable(layout):
            counts = {kind: int(rng.integers(low, high + 1)) for kind, (low, high) in vars(clutter).items()}
            kinds = [kind for kind, count in counts.items() for _ in range(count)]
            return Layout(objects, signs, tuple(_distractor(rng, kind, next(cells)) for kind in kinds))


def _objects(rng: np.random.Generator, cells: list[int]) -> tuple[HardObject, ...]:
    """Draw an object for each cell; a scene may have few colours or few shapes, so that counts above 1 are not rare."""
    colors = rng.permutation(list(COLORS))[: rng.choice([3, 5, 8])]
    shapes = rng.permutation(SHAPES)[: rng.choice([2, 4, 6])]
    return tuple(_object(rng, str(rng.choice(colors)), str(rng.choice(shapes)), cell) for cell in cells)


def _object(rng: np.random.Generator, color: str, shape: str, cell: int) -> HardObject:
    size = str(rng.choice(_SIZES, p=_SIZE_SHARES))
    large, jitter = size == "large", JITTERS[size]
    digit = str(rng.choice(DIGITS)) if large and rng.random() < _DIGIT_SHARE else None
    texture = str(rng.choice(TEXTURES)) if large and not digit else "plain"
    row, column = _corner(rng, cell, EDGES[size], EDGES[size])
    down, right = rng.integers(-jitter, jitter + 1, 2).tolist()
    return HardObject(color, shape, size, texture, digit, row, column, (down, right))


def _sign(rng: np.random.Generator, color: str, cell: int) -> Sign:
    word = str(rng.choice(WORDS))
    row, column = _corner(rng, cell, 1, len(word))
    return Sign(color, word, row, column, int(rng.integers(-2, 3)))


def _distractor(rng: np.random.Generator, kind: str, cell: int) -> Distractor:
    height, width = rng.integers(2, 4, 2).tolist()
    row, column = _corner(rng, cell, height, width)
    color = None if kind == "confetti" else str(rng.choice(list(COLORS)))
    return Distractor(kind, color, row, column, height, width, int(rng.integers(2**31)))


def _corner(rng: np.random.Generator, cell: int, height: int, width: int) -> tuple[int, int]:
    """Draw the first patch of a block of patches inside a cell."""
    down, right = rng.integers(CELL + 1 - height), rng.integers(CELL + 1 - width)
    return cell // _CELLS * CELL + int(down), cell % _CELLS * CELL + int(right)
