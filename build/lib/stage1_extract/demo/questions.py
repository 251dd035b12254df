"""Five kinds of question about a scene: a pure function of (seed, index) and the scene."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stage1_extract.demo.scenes import COLORS, SHAPES, Scene, SceneObject, off_centre, unique

COUNTS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class SceneQuestion:
    """What is asked, the answer, and where in the image the answer lies."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...]
    patches: tuple[int, ...]
    """Raster indices of the patches of the objects asked about; empty where they are not in the scene."""


def questions(scene: Scene, seed: int, index: int) -> list[SceneQuestion]:
    """One question of each kind."""
    rng = np.random.default_rng([seed, index, 1])
    return [ask(scene.objects, rng) for ask in (_color, _shape, _exists, _count, _side)]


def plural(shape: str) -> str:
    """A shape's plural.

    >>> plural("cross"), plural("star")
    ('crosses', 'stars')
    """
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _pick(rng: np.random.Generator, objects: list[SceneObject]) -> SceneObject:
    return objects[int(rng.integers(len(objects)))]


def _patches(objects: Iterable[SceneObject]) -> tuple[int, ...]:
    return tuple(sorted({patch for item in objects for patch in item.patches()}))


def _color(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    item = _pick(rng, unique(objects, "shape"))
    return SceneQuestion("color", f"what color is the {item.shape}?", item.color, tuple(COLORS), _patches([item]))


def _shape(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    item = _pick(rng, unique(objects, "color"))
    return SceneQuestion("shape", f"what shape is the {item.color} object?", item.shape, SHAPES, _patches([item]))


def _exists(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    """Half of the time about an object that is there; otherwise one that shares a colour or a shape with one that is."""
    item = _pick(rng, list(objects))
    color, shape, there = item.color, item.shape, bool(rng.random() < 0.5)
    while not there and any((color, shape) == (other.color, other.shape) for other in objects):
        if rng.random() < 0.5:
            color = list(COLORS)[int(rng.integers(len(COLORS)))]
        else:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
    answer = "yes" if there else "no"
    patches = _patches([item]) if there else ()
    return SceneQuestion("exists", f"is there a {color} {shape}?", answer, ("yes", "no"), patches)


def _count(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    """Each count that occurs in the scene is equally likely, so that neither 0 nor 1 dominates."""
    counts = {shape: sum(item.shape == shape for item in objects) for shape in SHAPES}
    wanted = int(rng.choice(sorted(set(counts.values()))))
    shapes = [shape for shape in SHAPES if counts[shape] == wanted]
    shape = shapes[int(rng.integers(len(shapes)))]
    patches = _patches(item for item in objects if item.shape == shape)
    return SceneQuestion("count", f"how many {plural(shape)} are there?", str(wanted), COUNTS, patches)


def _side(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    item = _pick(rng, off_centre(objects))
    text = f"is the {item.color} {item.shape} on the left or right?"
    return SceneQuestion("side", text, item.side, ("left", "right"), _patches([item]))
