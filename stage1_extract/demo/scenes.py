"""Draw scenes of coloured shapes; a scene is a pure function of (seed, index)."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

IMAGE_SIZE = 336
"""Edge of a scene, in pixels."""
PATCH_SIZE = 14
"""Edge of a patch, in pixels."""
GRID = IMAGE_SIZE // PATCH_SIZE
"""Number of patches along an edge."""
NOISE_BLOCK = 8
"""Edge of a block of background noise, in pixels."""
CELLS = 3
"""Objects lie in different cells of a CELLS x CELLS layout, so that they never overlap."""
MIN_SHARE = 0.1
"""Share of a patch's pixels from which on an object counts as covering the patch."""
CENTRE_MARGIN = 24
"""Least distance from the centre line, in pixels, of objects whose side is asked for."""

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (150, 50, 180),
    "orange": (245, 140, 30),
    "cyan": (50, 200, 210),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")


@dataclass(frozen=True)
class SceneObject:
    """One coloured shape of a scene."""

    color: str
    shape: str
    x: float
    """Distance of the centre from the left, in pixels."""
    y: float
    """Distance of the centre from the top, in pixels."""
    radius: float
    """Half of the object's extent, in pixels."""

    @property
    def side(self) -> str:
        """The half of the image that holds the centre: `left` or `right`."""
        return "left" if self.x < IMAGE_SIZE / 2 else "right"

    def cover(self) -> np.ndarray:
        """Return the share of each patch's pixels that the object covers, as floats of shape (GRID, GRID)."""
        mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
        _draw(ImageDraw.Draw(mask), self, 1)
        pixels = np.asarray(mask).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE)
        return pixels.mean((1, 3))

    def patches(self) -> list[int]:
        """Return the raster indices of the patches that the object covers."""
        return np.flatnonzero(self.cover().ravel() >= MIN_SHARE).tolist()


@dataclass(frozen=True)
class Scene:
    """An image of 2 to 4 objects on a noisy background."""

    image: Image.Image
    objects: tuple[SceneObject, ...]


def scene(seed: int, index: int) -> Scene:
    """Draw scene number `index` of a seed."""
    rng = np.random.default_rng([seed, index])
    image = Image.fromarray(background(rng).repeat(NOISE_BLOCK, 0).repeat(NOISE_BLOCK, 1))
    objects = _objects(rng)
    canvas = ImageDraw.Draw(image)
    for item in objects:
        _draw(canvas, item, COLORS[item.color])
    return Scene(image, objects)


def background(rng: np.random.Generator) -> np.ndarray:
    """Draw the colours of a scene's background, a pixel for each block: the first that is drawn of a scene."""
    base = rng.integers(180, 250, 3)
    coarse = base + rng.normal(0, 12, (IMAGE_SIZE // NOISE_BLOCK, IMAGE_SIZE // NOISE_BLOCK, 3))
    return np.clip(coarse, 0, 255).astype(np.uint8)


def _objects(rng: np.random.Generator) -> tuple[SceneObject, ...]:
    """Draw objects until one has a unique shape, one has a unique colour, and one lies off the centre line."""
    while True:
        count = int(rng.integers(2, 5))
        kinds = rng.permutation(len(COLORS) * len(SHAPES))[:count]
        # Half of the scenes draw from three shapes only, so that counts above one are not rare.
        shapes = rng.permutation(len(SHAPES))[: 3 if rng.random() < 0.5 else len(SHAPES)]
        pairs = {(int(k) // len(SHAPES), int(shapes[int(k) % len(shapes)])) for k in kinds}
        cells = rng.permutation(CELLS * CELLS)[: len(pairs)]
        objects = tuple(
            _place(rng, color, shape, int(cell)) for (color, shape), cell in zip(sorted(pairs), cells, strict=True)
        )
        if len(objects) >= 2 and _askable(objects):
            return objects


def _askable(objects: tuple[SceneObject, ...]) -> bool:
    return bool(unique(objects, "shape") and unique(objects, "color") and off_centre(objects))


def unique(objects: tuple[SceneObject, ...], attribute: str) -> list[SceneObject]:
    """List the objects whose `shape` or `color` no other object of the scene has."""
    values = [getattr(item, attribute) for item in objects]
    return [item for item, value in zip(objects, values, strict=True) if values.count(value) == 1]


def off_centre(objects: tuple[SceneObject, ...]) -> list[SceneObject]:
    """List the objects that clearly lie on one side."""
    return [item for item in objects if abs(item.x - IMAGE_SIZE / 2) >= CENTRE_MARGIN]


def _place(rng: np.random.Generator, color: int, shape: int, cell: int) -> SceneObject:
    edge = IMAGE_SIZE / CELLS
    radius = float(rng.uniform(0.28, 0.42) * edge)
    jitter = rng.uniform(-0.9, 0.9, 2) * (edge / 2 - radius)
    x, y = (cell % CELLS + 0.5) * edge + jitter[0], (cell // CELLS + 0.5) * edge + jitter[1]
    return SceneObject(list(COLORS)[color], SHAPES[shape], float(x), float(y), radius)


def _draw(canvas: ImageDraw.ImageDraw, item: SceneObject, fill: int | tuple[int, int, int]) -> None:
    x, y, r = item.x, item.y, item.radius
    if item.shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        canvas.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=fill)
    elif item.shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    elif item.shape == "diamond":
        canvas.polygon([(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)], fill=fill)
    elif item.shape == "cross":
        canvas.rectangle((x - 0.35 * r, y - r, x + 0.35 * r, y + r), fill=fill)
        canvas.rectangle((x - r, y - 0.35 * r, x + r, y + 0.35 * r), fill=fill)
    else:
        tips = [(r if tip % 2 == 0 else 0.45 * r, -math.pi / 2 + tip * math.pi / 5) for tip in range(10)]
        canvas.polygon([(x + length * math.cos(a), y + length * math.sin(a)) for length, a in tips], fill=fill)
