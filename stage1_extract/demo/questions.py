"""Ask five kinds of questions about a scene; they are a pure function of (seed, index) and the scene."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from stage1_extract.demo.scenes import COLORS, SHAPES, Scene, SceneObject, off_centre, unique

COUNTS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a scene, its answer, and the patches that show the answer."""

    kind: str
    """`color`, `shape`, `exists`, `count` or `side`."""
    text: str
    answer: str
    choices: tuple[str, ...]
    patches: tuple[int, ...]
    """Raster indices of the patches of the objects asked about; empty where the objects are not in the scene."""


def questions(scene: Scene, seed: int, index: int) -> list[SceneQuestion]:
    """Ask one question of each kind."""
    rng = np.random.default_rng([seed, index, 1])
    return [ask(scene.objects, rng) for ask in (_color, _shape, _exists, _count, _side)]


def plural(shape: str) -> str:
    """Return the plural of a shape.

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
    """Ask whether an object is in the scene.

    Half of the questions are about an object of the scene. The others begin with such an object, and change its colour or
    shape until it matches no object of the scene.
    """
    item = _pick(rng, list(objects))
    color, shape, present = item.color, item.shape, bool(rng.random() < 0.5)
    while not present and any((color, shape) == (other.color, other.shape) for other in objects):
        if rng.random() < 0.5:
            color = list(COLORS)[int(rng.integers(len(COLORS)))]
        else:
            shape = SHAPES[int(rng.integers(len(SHAPES)))]
    answer = "yes" if present else "no"
    patches = _patches([item]) if present else ()
    return SceneQuestion("exists", f"is there a {color} {shape}?", answer, ("yes", "no"), patches)


def _count(objects: tuple[SceneObject, ...], rng: np.random.Generator) -> SceneQuestion:
    """Ask for a count; each count that occurs in the scene is equally likely, so that neither 0 nor 1 dominates."""
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
