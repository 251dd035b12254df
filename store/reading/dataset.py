"""A store as a torch dataset that reads whole batches, so that a plain DataLoader without workers is fast."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from store.reading.by_name import read_rows, rows_of
from store.reading.reader import FeatureStore

FeatureRows = dict[str, Shaped[Tensor, "image ..."]]
"""Features of some images, by array."""


class RowBatch(Sequence[dict[str, Shaped[Tensor, "..."]]]):
    """A batch that was read at once, and that torch's default collate can take for a list of images."""

    def __init__(self, rows: FeatureRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return min((len(tensor) for tensor in self.rows.values()), default=0)

    def __getitem__(self, index: Any) -> Any:
        """Return the features of one image, (*shape) by array."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: tensor[index] for name, tensor in self.rows.items()}


class StoreDataset(Dataset[Any]):
    """Some arrays of a store, image by image; leaves out images that could not be encoded.

    Reading copies from the page cache, so worker processes only slow it down. Every batch is a fresh set of tensors. The
    dataset pickles, for workers that are spawned or come from a fork server: each of them opens the store for itself.
    Torch's default collate works too, and copies every batch once more.

    Args:
        store: The store.
        names: Names of the arrays to read.
        images: Names of images, such as those of one split, in the order of the dataset. None takes every image that has all of
            these arrays and a name: features of an image's former content have no name.

    Raises:
        StoreMissing: (exit 5) The store lacks an array, or a named image's shard is not extracted yet.
        RowUnavailable: (exit 4) The store does not know a named image.

    Examples:
        >>> dataset = StoreDataset(store, ["raw"])  # doctest: +SKIP
        >>> loader = DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=StoreDataset.collate)  # doctest: +SKIP

    """

    def __init__(self, store: FeatureStore, names: Sequence[str], *, images: Sequence[str] | None = None) -> None:
        store.require(names)
        self.store, self.names = store, tuple(names)
        self.rows = _named_rows(store, names) if images is None else _rows_of(store, names, images)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Shaped[Tensor, "..."]]:
        """Read one image and return its features, (*shape) by array."""
        return {name: tensor[0] for name, tensor in self.read([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> RowBatch:
        """Read a batch of images; `DataLoader` calls this method instead of `__getitem__`."""
        return RowBatch(self.read(indices))

    def read(self, indices: Sequence[int]) -> FeatureRows:
        """Read some images and return their features, (image, *shape) by array."""
        rows = np.take(self.rows, indices).tolist()
        return {name: read_rows(self.store, name, rows) for name in self.names}

    @staticmethod
    def collate(batch: RowBatch) -> FeatureRows:
        """Return the tensors of a batch as they are, for `DataLoader(collate_fn=…)`: `__getitems__` collated them."""
        return batch.rows


def _named_rows(store: FeatureStore, arrays: Sequence[str]) -> NDArray[np.intp]:
    """Return the rows that hold some arrays, of images that have a name."""
    complete = np.zeros(store.plan.n_rows, bool)  # a list of millions of numbers is slow, and takes 400 MB
    for shard in store.shards_with(arrays):
        rows = store.plan.rows(shard)
        complete[rows.start : rows.stop] = True
    complete[[*store.failed(arrays)]] = False
    return np.flatnonzero(complete & store.ids.named())


def _rows_of(store: FeatureStore, arrays: Sequence[str], images: Sequence[str]) -> NDArray[np.intp]:
    """Return the rows of named images without those that could not be encoded."""
    failed = store.failed(arrays)
    rows = [row for row in rows_of(store, images) if row not in failed]
    store.require_complete(arrays, rows)
    return np.array(rows, np.intp)
