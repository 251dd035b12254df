"""What objects of the harder scenes look like: the pixels of each shape and size, and the textures."""

from functools import cache

import numpy as np
from jaxtyping import Bool, Float

from stage1_extract.demo.scenes import PATCH_SIZE

EDGES = {"tiny": 1, "small": 2, "large": 3}
"""Edge of the block of patches that an object of each size lies in, in patches."""
TEXTURES = ("plain", "striped", "dotted")
_RADII = {"tiny": 6.0, "small": 12.0, "large": 19.0}
"""Half of an object's extent, in pixels."""
JITTERS = {"tiny": 1, "small": 2, "large": 2}
"""Largest distance of an object from the middle of its block, along each axis, in pixels: it never leaves the block."""
_INNER = 0.45
"""Distance of a star's inner corners from its centre, as a share of that of its tips."""


@cache
def shape_mask(shape: str, size: str, down: int, right: int) -> Bool[np.ndarray, "edge edge"]:
    """Return the pixels of an object in its block; `down` and `right` move the object, in pixels."""
    edge, r = EDGES[size] * PATCH_SIZE, _RADII[size]
    centre = (edge - 1) / 2
    y, x = np.mgrid[:edge, :edge] - np.array([centre + down, centre + right])[:, None, None]
    if shape == "circle":
        return x**2 + y**2 <= r**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85 * r
    if shape == "diamond":
        return abs(x) / 0.75 + abs(y) <= r
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.35 * r) & (np.maximum(abs(x), abs(y)) <= r)
    if shape == "triangle":
        return (y <= 0.8 * r) & (abs(x) <= (y + r) / 1.8)
    return _star(x, y, r)


def _star(x: Float[np.ndarray, "edge edge"], y: Float[np.ndarray, "edge edge"], r: float) -> np.ndarray:
    """Return the points of a star with five tips, the first of which points up."""
    tip = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + tip / 2) % tip - tip / 2)  # from the nearest tip
    # In the sector between a tip (r, 0) and an inner corner, a point is inside if it is on the centre's side of their edge.
    distance = np.hypot(x, y)
    along, across = distance * np.cos(angle), distance * np.sin(angle)
    corner = _INNER * r * np.array([np.cos(tip / 2), np.sin(tip / 2)])
    return (along - r) * corner[1] <= across * (corner[0] - r)


@cache
def shape_cover(shape: str, size: str, down: int, right: int) -> Float[np.ndarray, " patch"]:
    """Return the share of the pixels of each patch of the block that the object covers."""
    count = EDGES[size]
    mask = shape_mask(shape, size, down, right)
    return mask.reshape(count, PATCH_SIZE, count, PATCH_SIZE).mean((1, 3)).ravel()


@cache
def texture_mask(texture: str) -> Bool[np.ndarray, "edge edge"]:
    """Return the pixels of a large object's block that its texture darkens."""
    edge = EDGES["large"] * PATCH_SIZE
    y, x = np.mgrid[:edge, :edge]
    if texture == "striped":
        return (x + y) % 7 < 3
    if texture == "dotted":
        return (x % 7 < 3) & (y % 7 < 3)
    return np.zeros((edge, edge), bool)
