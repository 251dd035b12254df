"""Choose a few images of a store, to be encoded again."""

import random
from collections.abc import Sequence

from configs.errors import EXTRACT
from store.errors import StoreMissing
from store.reading.reader import FeatureStore


def readable(store: FeatureStore) -> list[int]:
    """List the rows that hold features of an image that still has a name.

    Raises StoreMissing (exit 5) if nothing is extracted yet.
    """
    rows = [row for row in store.rows_with(store.arrays) if store.ids.names(row)]
    if not rows:
        raise StoreMissing(f"expected extracted images in {store.path}, there are none yet: run {EXTRACT} first")
    return rows


def spread_out(store: FeatureStore, sample: int) -> list[int]:
    """Return at most `sample` readable rows, spread evenly over the whole store; the choice never changes."""
    rows = readable(store)
    count = min(sample, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]


def drawn(rows: Sequence[int], sample: int, seed: int) -> list[int]:
    """Draw at most `sample` rows by a seed: the rows are cut into as many equal stretches, and one row is drawn from each."""
    count = min(sample, len(rows))
    stretches = [(number * len(rows) // count, (number + 1) * len(rows) // count) for number in range(count)]
    generator = random.Random(seed)  # noqa: S311 (a sample, no secret)
    return [rows[generator.randrange(first, last)] for first, last in stretches]
