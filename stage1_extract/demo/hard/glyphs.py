"""The digits and letters of the harder scenes, as bitmaps that lie in `glyphs.txt` because fonts change between versions."""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool

DIGITS = tuple("0123456789")
LETTERS = tuple("abcenopt")
GLYPHS = (*DIGITS, *LETTERS)
WORDS = (
    "cat", "cot", "can", "con", "cap", "cop", "pan", "pen",
    "pat", "pet", "pot", "bat", "bet", "ban", "net", "not",
)  # fmt: skip
"""Words of the signs: no two of them have the same letters, and many differ in one letter."""
SCALE = 2
"""Pixels of a glyph's edge per dot of its bitmap."""
HEIGHT, WIDTH = 7, 5
"""Size of a bitmap, in dots."""


@cache
def glyphs() -> dict[str, Bool[np.ndarray, "height width"]]:
    """Return the pixels of each glyph, 14 high and 10 wide; true where there is ink."""
    lines = Path(__file__).with_name("glyphs.txt").read_text(encoding="utf-8").split()
    drawn: dict[str, np.ndarray] = {}
    for first in range(0, len(lines), HEIGHT + 1):
        name, *rows = lines[first : first + HEIGHT + 1]
        bitmap = np.array([[dot == "#" for dot in row] for row in rows])
        assert bitmap.shape == (HEIGHT, WIDTH), name
        drawn[name] = bitmap.repeat(SCALE, 0).repeat(SCALE, 1)
    return drawn
