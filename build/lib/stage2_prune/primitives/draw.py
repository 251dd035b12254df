"""Randomness of a pruner: a function of its seed and of the image, never of the batch or of what ran before."""

import hashlib

import numpy as np
from jaxtyping import Int


def image_seed(seed: int, image_id: str) -> int:
    """Compute 128 bits to seed a generator with, for one image."""
    return int.from_bytes(hashlib.sha256(f"{seed} {image_id}".encode()).digest()[:16], "big")


def permutation(seed: int, image_id: str, patches: int) -> Int[np.ndarray, " patch"]:
    """Return an image's patches in random order."""
    return np.random.Generator(np.random.PCG64(image_seed(seed, image_id))).permutation(patches)
