"""What the tower learns to tell: labels of every patch, and which things are in a window of the scene."""

from itertools import product

import numpy as np
from jaxtyping import Float, Int

from stage1_extract.demo.hard.glyphs import GLYPHS
from stage1_extract.demo.hard.objects import Layout
from stage1_extract.demo.hard.shapes import EDGES, TEXTURES
from stage1_extract.demo.scenes import COLORS, GRID, SHAPES
from stage1_extract.demo.teaching import IGNORED

DISTRACTORS = ("confetti", "checkerboard", "scribble")
_VALUES = {
    "color": tuple(COLORS),
    "shape": (*SHAPES, "sign"),
    "size": (*EDGES, "sign"),
    "texture": (*TEXTURES, "sign"),
    "glyph": GLYPHS,
    "middle": (True,),
    "distractor": DISTRACTORS,
}
"""Values of each label, whose classes count from 1; class 0 is a patch without the label."""
CLASSES = {name: len(values) + 1 for name, values in _VALUES.items()} | {"column": GRID, "row": GRID}
"""Number of classes of each label."""
_THINGS = (
    *product(COLORS, SHAPES),
    *product(COLORS, ("sign", "checkerboard", "scribble")),
    (None, "confetti"),
)
"""What the CLS row learns to tell the presence of; distractors are among it, so that they draw its attention."""
THINGS = len(_THINGS)
_LEAST_SHARE, _FAINT_SHARE = 0.15, 0.02
"""Shares of a patch's pixels from which on an object gives the patch its labels, and from which on the patch is ignored."""
_WEIGHTS = {"tiny": 3.0, "small": 1.5, "large": 1.0}
"""Weight of the patches of objects by size: an object of few patches shall not count for little."""

Labels = dict[str, Int[np.ndarray, "rows columns"]]


def dense_labels(layout: Layout) -> tuple[Labels, Float[np.ndarray, "rows columns"]]:
    """Return the labels of every patch, and the weight of every patch that shows an object or a sign (elsewhere 0)."""
    labels = {name: np.zeros(GRID * GRID, np.int64) for name in _VALUES}
    weight = np.zeros(GRID * GRID, np.float32)
    for item in layout.objects:
        cover = item.cover()
        shown = [patch for patch, share in cover.items() if share >= _LEAST_SHARE]
        faint = [patch for patch, share in cover.items() if _FAINT_SHARE < share < _LEAST_SHARE]
        for name in ("color", "shape", "size", "texture"):
            labels[name][shown] = _class(name, getattr(item, name))
            labels[name][faint] = IGNORED
        labels["middle"][item.middle] = 1
        labels["glyph"][item.middle] = _class("glyph", item.digit) if item.digit else 0
        weight[shown] = _WEIGHTS[item.size]
    for sign in layout.signs:
        patches = sign.patches()
        labels["color"][patches] = _class("color", sign.color)
        for name in ("shape", "size", "texture"):
            labels[name][patches] = _class(name, "sign")
        labels["glyph"][patches] = [_class("glyph", letter) for letter in sign.word]
        weight[patches] = _WEIGHTS["small"]
    for distractor in layout.distractors:
        labels["distractor"][distractor.patches()] = _class("distractor", distractor.kind)
    labels["row"], labels["column"] = np.divmod(np.arange(GRID * GRID), GRID)
    return {name: label.reshape(GRID, GRID) for name, label in labels.items()}, weight.reshape(GRID, GRID)


def things(layout: Layout) -> list[tuple[int, int]]:
    """List the things in a scene: the class of each in the CLS row's labels, and the patch that stands for it."""
    listed = [((item.color, item.shape), item.middle) for item in layout.objects]
    listed += [((sign.color, "sign"), sign.patches()[1]) for sign in layout.signs]
    distractors = [((item.color, item.kind), item.patches()) for item in layout.distractors]
    listed += [(thing, patches[len(patches) // 2]) for thing, patches in distractors]
    return [(_THINGS.index(thing), patch) for thing, patch in listed]


def _class(name: str, value: object) -> int:
    return _VALUES[name].index(value) + 1
