"""An order in which what is alike stands side by side."""

from itertools import product

import numpy as np
from jaxtyping import Float


def leaf_order(alike: Float[np.ndarray, "one one"]) -> list[int]:
    """Average-linkage clusters of a symmetric matrix of likeness, laid out as a line.

    The two likest clusters are joined again and again; each time the ends that meet are the likest ones. Of equals the
    first.

    >>> leaf_order(np.array([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]))
    [0, 2, 1]
    """
    clusters = [[place] for place in range(len(alike))]
    while len(clusters) > 1:
        pairs = [(i, j) for j in range(len(clusters)) for i in range(j)]
        one, other = max(pairs, key=lambda pair: alike[np.ix_(clusters[pair[0]], clusters[pair[1]])].mean())
        turned = product((clusters[one], clusters[one][::-1]), (clusters[other], clusters[other][::-1]))
        left, right = max(turned, key=lambda ends: alike[ends[0][-1], ends[1][0]])
        clusters[one] = left + right
        del clusters[other]
    return clusters[0] if clusters else []
