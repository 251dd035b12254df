"""Draw a layout: a noisy background, distractors, objects and signs, pixel by pixel without a drawing library."""

import numpy as np
from jaxtyping import UInt8

from stage1_extract.demo.hard.glyphs import SCALE, WIDTH, glyphs
from stage1_extract.demo.hard.objects import Distractor, HardObject, Layout, Sign
from stage1_extract.demo.hard.shapes import shape_mask, texture_mask
from stage1_extract.demo.scenes import COLORS, GRID, IMAGE_SIZE, NOISE_BLOCK, PATCH_SIZE

_DARKER = 0.4
"""Brightness of stripes and dots, as a share of the object's."""
_LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue."""
_PALE = (245, 245, 245)
"""The second colour of a checkerboard."""
_CONFETTI_CORE = 4
"""Half of the edge of the inner square of a patch of confetti, in pixels."""
_CHECK = 7
"""Edge of a square of a checkerboard, in pixels."""
_STROKES, _PEN = 9, 2
"""Number of lines of a scribble, and their width in pixels."""


def draw(layout: Layout, rng: np.random.Generator) -> UInt8[np.ndarray, "height width 3"]:
    """Return the pixels of a layout on a random background."""
    blocks = IMAGE_SIZE // NOISE_BLOCK
    coarse = rng.integers(180, 240, 3) + rng.integers(-20, 21, (blocks, blocks, 3))
    pixels = np.clip(coarse, 0, 255).astype(np.uint8).repeat(NOISE_BLOCK, 0).repeat(NOISE_BLOCK, 1)
    for distractor in layout.distractors:
        _draw_distractor(
            _block(pixels, distractor.row, distractor.column, distractor.height, distractor.width), distractor
        )
    for item in layout.objects:
        _draw_object(pixels, item)
    for sign in layout.signs:
        _draw_sign(pixels, sign)
    return pixels


def _block(pixels: np.ndarray, row: int, column: int, height: int, width: int) -> np.ndarray:
    """Return the pixels of a block of patches, as a view."""
    top, left = row * PATCH_SIZE, column * PATCH_SIZE
    return pixels[top : top + height * PATCH_SIZE, left : left + width * PATCH_SIZE]


def _draw_object(pixels: np.ndarray, item: HardObject) -> None:
    block, color = _block(pixels, item.row, item.column, item.edge, item.edge), np.array(COLORS[item.color])
    mask = shape_mask(item.shape, item.size, *item.shift)
    block[mask] = color
    if item.texture != "plain":
        block[mask & texture_mask(item.texture)] = color * _DARKER
    if item.digit:
        _draw_glyph(_block(pixels, *divmod(item.middle, GRID), 1, 1), item.digit, item.color, item.shift[1])


def _draw_sign(pixels: np.ndarray, sign: Sign) -> None:
    _block(pixels, sign.row, sign.column, 1, len(sign.word))[:] = COLORS[sign.color]
    for number, letter in enumerate(sign.word):
        _draw_glyph(_block(pixels, sign.row, sign.column + number, 1, 1), letter, sign.color, sign.shift)


def _draw_glyph(patch: np.ndarray, glyph: str, ground: str, shift: int) -> None:
    """Write a glyph onto a patch: in black on light colours, and in white on dark ones."""
    ink = 0 if np.dot(COLORS[ground], _LUMA) > 110 else 255
    left = (PATCH_SIZE - WIDTH * SCALE) // 2 + shift
    patch[:, left : left + WIDTH * SCALE][glyphs()[glyph]] = ink


def _draw_distractor(block: np.ndarray, distractor: Distractor) -> None:
    rng = np.random.default_rng(distractor.seed)
    height, width = block.shape[:2]
    if distractor.kind == "confetti":
        outer, inner = (_saturated(rng, (distractor.height, distractor.width)) for _ in range(2))
        y, x = np.mgrid[:height, :width]
        edge = np.maximum(abs(y % PATCH_SIZE - 6.5), abs(x % PATCH_SIZE - 6.5)) > _CONFETTI_CORE
        block[:] = np.where(edge[..., None], *(c.repeat(PATCH_SIZE, 0).repeat(PATCH_SIZE, 1) for c in (outer, inner)))
    elif distractor.kind == "checkerboard":
        y, x = np.mgrid[:height, :width] // _CHECK
        block[:] = np.where(((y + x) % 2 == 0)[..., None], COLORS[distractor.color or ""], _PALE)
    else:
        corners = rng.integers(0, (height - _PEN + 1, width - _PEN + 1), (_STROKES + 1, 2))
        steps = np.linspace(0, 1, 2 * max(height, width))[:, None, None]
        y, x = (corners[:-1] + steps * np.diff(corners, axis=0)).round().astype(int).reshape(-1, 2).T
        for down, right in np.ndindex(_PEN, _PEN):
            block[y + down, x + right] = COLORS[distractor.color or ""]


def _saturated(rng: np.random.Generator, shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape 3"]:
    """Draw colours of full saturation: one channel is 255, one is 0, and one is in between."""
    channels = np.stack([np.full(shape, 255), np.zeros(shape, int), rng.integers(0, 256, shape)], -1)
    return rng.permuted(channels, axis=-1).astype(np.uint8)
