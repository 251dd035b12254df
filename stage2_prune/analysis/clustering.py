"""Order items so that similar items stand side by side."""

from itertools import product

import numpy as np
from jaxtyping import Float


def leaf_order(alike: Float[np.ndarray, "item item"]) -> list[int]:
    """Cluster a symmetric matrix of similarities by average linkage, and lay the clusters out as a line.

    Again and again the two most similar clusters are joined, each turned so that the two ends that meet are as similar as
    possible. Of equally similar choices, the first is taken.

    >>> leaf_order(np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]))
    [0, 2, 1]
    """
    clusters = [[index] for index in range(len(alike))]
    while len(clusters) > 1:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        first, second = max(pairs, key=lambda pair: alike[np.ix_(clusters[pair[0]], clusters[pair[1]])].mean())
        turned = product((clusters[first], clusters[first][::-1]), (clusters[second], clusters[second][::-1]))
        left, right = max(turned, key=lambda ends: alike[ends[0][-1], ends[1][0]])
        clusters[first] = left + right
        del clusters[second]
    return clusters[0] if clusters else []
