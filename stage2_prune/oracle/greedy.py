"""Choose patches one after another, each time those that raise a score most."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

SINGLES = 16
"""Up to this many kept patches, each round adds one patch."""
BLOCK = 4
"""Beyond, each round adds this many patches: those that score best on their own in that round."""
Score = Callable[[Int[Tensor, "candidate kept"]], Float[Tensor, " candidate"]]
"""Scores sets of patches, of which each is in ascending order; the higher the better."""


def greedy(score: Score, pool: Sequence[int], largest: int) -> list[int]:
    """Choose `largest` patches of a pool, in the order in which they are found: the first k are the choice at a budget of k.

    Every round scores every candidate that is left, beside the patches that are kept. Of equal candidates the one that stands
    first in the pool is taken. A round that takes all that is left scores nothing, because no score can change its choice.
    """
    kept: list[int] = []
    left = list(dict.fromkeys(pool))
    while len(kept) < largest and left:
        adding = min(1 if len(kept) < SINGLES else BLOCK, largest - len(kept))
        if len(left) > adding:
            sets = torch.tensor([[*kept, candidate] for candidate in left]).sort(dim=1).values
            order = score(sets).argsort(descending=True, stable=True).tolist()
            best = [left[number] for number in order[:adding]]
        else:
            best = left
        kept += best
        left = [candidate for candidate in left if candidate not in best]
    return kept


def rounds(pool: int, largest: int) -> list[tuple[int, int]]:
    """List the rounds of a search that score something: the patches of each set, and the number of sets."""
    listed: list[tuple[int, int]] = []
    kept = 0
    while kept < min(largest, pool):
        adding = min(1 if kept < SINGLES else BLOCK, largest - kept)
        if pool - kept > adding:
            listed.append((kept + 1, pool - kept))
        kept += adding
    return listed
