"""Ask five kinds of questions about a harder scene; the questions are a pure function of (seed, index) and the layout."""

from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np

from stage1_extract.demo.hard.glyphs import DIGITS, WORDS
from stage1_extract.demo.hard.objects import HardObject, Layout, Phrase
from stage1_extract.demo.hard.shapes import EDGES, TEXTURES
from stage1_extract.demo.questions import COUNTS, SceneQuestion
from stage1_extract.demo.scenes import COLORS, SHAPES

KINDS = ("color", "read", "count", "relation", "exists")
APART = 3
"""Least distance between the middles of an anchor and of a candidate of a relation, in patches along the axis asked about."""
_DIRECTIONS = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
"""Axis (0 for rows, 1 for columns) and sign of each relation."""
_COUNTED = (
    [Phrase(color=color) for color in COLORS],
    [Phrase(shape=shape) for shape in SHAPES],
    [Phrase(size=size) for size in EDGES],
    [Phrase(texture=texture) for texture in TEXTURES[1:]],
    [Phrase(color=color, shape=shape) for color, shape in product(COLORS, SHAPES)],
)
"""What can be counted, by the attributes that are named."""
_VALUES = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(EDGES), "texture": TEXTURES[1:]}

_Item = TypeVar("_Item")

Relation = tuple[HardObject, Phrase, str, HardObject, Phrase]
"""The object asked about, its phrase, the relation, the anchor, and the anchor's phrase."""


def questions(layout: Layout, seed: int, index: int) -> list[SceneQuestion]:
    """Ask one question of each kind about a whole scene."""
    rng = np.random.default_rng([seed, index, 1])
    asked = [ask(kind, layout, rng) for kind in KINDS]
    return [question for question in asked if question is not None]


def ask(kind: str, layout: Layout, rng: np.random.Generator) -> SceneQuestion | None:
    """Ask one question, or return None if the layout has nothing that a question of the kind could be about."""
    return {"color": _color, "read": _read, "count": _count, "relation": _relation, "exists": _exists}[kind](
        layout, rng
    )


def askable(layout: Layout) -> bool:
    """Tell whether every kind of question can be asked."""
    return bool(_named(layout.objects) and relations(layout.objects) and (layout.signs or _with_digits(layout.objects)))


def _pick(rng: np.random.Generator, items: list[_Item]) -> _Item:
    return items[int(rng.integers(len(items)))]


def _question(kind: str, text: str, answer: str, choices: tuple[str, ...], patches: list[int]) -> SceneQuestion:
    return SceneQuestion(kind, text, answer, choices, tuple(sorted(set(patches))))


def _phrases(item: HardObject) -> list[Phrase]:
    """List the phrases that name an object without its colour."""
    phrases = [Phrase(shape=item.shape), Phrase(shape=item.shape, size=item.size)]
    return phrases + ([Phrase(shape=item.shape, texture=item.texture)] if item.texture != "plain" else [])


def _named(objects: tuple[HardObject, ...]) -> list[tuple[HardObject, list[Phrase]]]:
    """List the objects that a phrase without a colour singles out, with these phrases."""
    phrases = [(item, [phrase for phrase in _phrases(item) if len(phrase.of(objects)) == 1]) for item in objects]
    return [(item, fitting) for item, fitting in phrases if fitting]


def _color(layout: Layout, rng: np.random.Generator) -> SceneQuestion | None:
    named = _named(layout.objects)
    if not named:
        return None
    item, phrases = _pick(rng, named)
    text = f"what color is the {_pick(rng, phrases)}?"
    return _question("color", text, item.color, tuple(COLORS), item.patches())


def _with_digits(objects: tuple[HardObject, ...]) -> list[HardObject]:
    """List the objects with a digit that no other object shares colour and shape with."""
    return [item for item in objects if item.digit and len(Phrase(item.color, item.shape).of(objects)) == 1]


def _read(layout: Layout, rng: np.random.Generator) -> SceneQuestion | None:
    """Ask for a digit in half of the scenes that show a digit and a word."""
    shown, signs = _with_digits(layout.objects), list(layout.signs)
    if shown and (not signs or rng.random() < 0.5):
        item = _pick(rng, shown)
        text = f"which digit is in the {Phrase(item.color, item.shape)}?"
        return _question("read", text, item.digit or "", DIGITS, item.patches())
    if not signs:
        return None
    sign = _pick(rng, signs)
    return _question("read", f"which word is on the {sign.color} sign?", sign.word, WORDS, sign.patches())


def _count(layout: Layout, rng: np.random.Generator) -> SceneQuestion:
    """Ask for a count; each count from 0 to 4 that occurs is equally likely."""
    fitting = [[(phrase, phrase.of(layout.objects)) for phrase in form] for form in _COUNTED]
    wanted = _pick(rng, sorted({len(items) for form in fitting for _, items in form if len(items) < len(COUNTS)}))
    forms = [found for form in fitting if (found := [pair for pair in form if len(pair[1]) == wanted])]
    phrase, items = _pick(rng, _pick(rng, forms))
    patches = [patch for item in items for patch in item.patches()]
    return _question("count", f"how many {phrase.plural} are there?", str(wanted), COUNTS, patches)


def relations(objects: tuple[HardObject, ...]) -> list[Relation]:
    """List what can be asked by a relation.

    A phrase fits exactly two objects of different colours, and these lie on different sides of an anchor, which another
    phrase singles out.
    """
    pairs = {phrase: phrase.of(objects) for item in objects for phrase in _phrases(item)}
    pairs = {phrase: two for phrase, two in pairs.items() if len(two) == 2 and two[0].color != two[1].color}
    found: list[Relation] = []
    for anchor in objects if pairs else ():
        names = [*_phrases(anchor), Phrase(anchor.color, anchor.shape)]
        names = [name for name in names if len(name.of(objects)) == 1]
        for phrase, two in pairs.items():
            for (words, (axis, sign)), name in product(_DIRECTIONS.items(), names):
                distances = [sign * (item.centre[axis] - anchor.centre[axis]) for item in two]
                if min(distances) <= -APART and max(distances) >= APART:
                    found.append((two[int(np.argmax(distances))], phrase, words, anchor, name))
    return found


def _relation(layout: Layout, rng: np.random.Generator) -> SceneQuestion | None:
    found = relations(layout.objects)
    if not found:
        return None
    item, phrase, words, anchor, name = _pick(rng, found)
    text = f"what color is the {phrase} {words} the {name}?"
    return _question("relation", text, item.color, tuple(COLORS), item.patches() + anchor.patches())


def _exists(layout: Layout, rng: np.random.Generator) -> SceneQuestion | None:
    """Ask whether an object is in the scene.

    Half of the questions name an object of the scene. The others change one attribute of such a phrase, so that it fits none.
    """
    if not layout.objects:
        return None
    item, present = _pick(rng, list(layout.objects)), bool(rng.random() < 0.5)
    named = Phrase(item.color, item.shape)
    if rng.random() < 0.5:
        named = replace(named, size=item.size) if item.texture == "plain" else replace(named, texture=item.texture)
    phrase = named
    while not present and phrase.of(layout.objects):
        attribute = _pick(rng, [name for name in _VALUES if getattr(named, name)])
        phrase = replace(named, **{attribute: _pick(rng, list(_VALUES[attribute]))})
    patches = [patch for fitting in phrase.of(layout.objects) for patch in fitting.patches()]
    return _question("exists", f"is there a {phrase}?", "yes" if present else "no", ("yes", "no"), patches)
