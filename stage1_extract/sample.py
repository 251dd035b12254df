"""A few images of a store, to be encoded again."""

from store.errors import StoreMissing
from store.reader import FeatureStore


def spread_out(store: FeatureStore, sample: int) -> list[int]:
    """At most `sample` rows that hold features of an image that still has a name, spread over the whole store.

    Raises StoreMissing (exit 5) if nothing is extracted yet.
    """
    rows = [row for row in store.rows_with(store.arrays) if store.ids.names(row)]
    if not rows:
        raise StoreMissing(f"expected extracted images in {store.path}, there are none yet: run `make extract` first")
    count = min(sample, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
