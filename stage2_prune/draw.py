"""Randomness of a pruner: a function of its seed and of the image, never of the batch or of what ran before."""

import hashlib


def image_seed(seed: int, image_id: str) -> int:
    """128 bits to seed a generator with, for one image."""
    return int.from_bytes(hashlib.sha256(f"{seed} {image_id}".encode()).digest()[:16], "big")
