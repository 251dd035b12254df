"""Test exactly whether a difference is more than chance, and correct p-values for many pairs."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int


@lru_cache(maxsize=4096)
def mcnemar(right_to_wrong: int, wrong_to_right: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test: were flips as likely in one direction as in the other?

    The binomial tail is summed in whole numbers, so no count is too large.

    >>> mcnemar(1, 5)
    0.21875
    """
    flips, fewer = right_to_wrong + wrong_to_right, min(right_to_wrong, wrong_to_right)
    ways = tail = 1
    for k in range(fewer):
        ways = ways * (flips - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**flips)


def sign_flips(differences: Int[np.ndarray, " unit"]) -> float:
    """Compute the exact two-sided p-value of integer differences: how often would random signs give so large a sum?

    If all differences are 1 (right) or -1 (wrong), this is McNemar's test. The differences may also be counts of seeds, or
    of an image's questions.
    """
    sizes = np.abs(differences[differences != 0])
    sizes //= np.gcd.reduce(sizes) if len(sizes) else 1
    positive = differences[differences != 0] > 0
    if (sizes == 1).all():
        return mcnemar(int((~positive).sum()), int(positive.sum()))
    smaller = int(min(sizes[positive].sum(), sizes[~positive].sum()))
    # The chance of each sum of positive differences, up to the smaller of the two observed sums.
    below = np.zeros(smaller + 1)
    below[0] = 1
    for size in sizes:
        below[size:] += below[:-size].copy()
        below /= 2
    return min(1.0, 2 * float(below.sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's method.

    Rejecting every hypothesis whose adjusted p-value is below alpha rejects a true one in at most a share alpha of families.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    left = np.arange(len(p_values), 0, -1)
    stepped: Float[np.ndarray, " test"] = np.minimum(np.asarray(p_values, float)[order] * left, 1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted.tolist()


def kl_divergence(true: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Compute KL(true || other) in nats from log-probabilities of the same answers; rounding never makes it negative."""
    return max(0.0, math.fsum(math.exp(log) * (log - other[answer]) for answer, log in true.items()))
