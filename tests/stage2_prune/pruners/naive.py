"""Slow and plain arithmetic that golden tests are worked out with, in float64 and one number at a time.

Every choice is checked to be clear: an expectation that hangs on a tie would test nothing.
"""

import numpy as np

CLEAR = 1e-6
"""How far a chosen value must lie from the best that was not chosen, relative to it."""


def best(scores: dict[int, float], count: int) -> list[int]:
    """The keys of the `count` highest scores, best first."""
    order = sorted(scores, key=lambda one: -scores[one])
    if 0 < count < len(order):
        inside, outside = scores[order[count - 1]], scores[order[count]]
        assert inside - outside > CLEAR * abs(inside), "a tie decides this case: take another seed"
    return order[:count]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float((one * other).sum() / (np.sqrt((one**2).sum()) * np.sqrt((other**2).sum())))


def nearest(features: np.ndarray, patch: int, candidates: list[int]) -> int:
    """The candidate whose feature is most like that of `patch`."""
    return best({other: cosine(features[patch], features[other]) for other in candidates}, 1)[0]


def arrays(tokens) -> dict[str, np.ndarray]:
    """Arrays of the first image."""
    return {name: array[0].double().numpy() for name, array in tokens.arrays.items()}


def picks(patches: list[int], rows: int) -> np.ndarray:
    """Weights of a selection."""
    weights = np.zeros((len(patches), rows))
    for place, patch in enumerate(patches):
        weights[place, patch] = 1
    return weights
