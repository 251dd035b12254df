"""A store as a torch dataset: whole batches at once, so that a plain DataLoader without workers is fast."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore

Rows = dict[str, Shaped[Tensor, "image ..."]]


class Batch(Sequence[dict[str, Shaped[Tensor, "..."]]]):
    """A batch that was read at once, which torch's default collate takes for a list of images."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return min((len(tensor) for tensor in self.rows.values()), default=0)

    def __getitem__(self, index: Any) -> Any:
        """One image: (*shape) by array."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return {name: tensor[index] for name, tensor in self.rows.items()}


class StoreDataset(Dataset[Any]):
    """Arrays of a store by row; images of which one of them failed or is missing are left out.

    Reading is copying from the page cache: worker processes only slow it down. Every batch is a fresh set of tensors. It
    pickles, for workers that are spawned or come from a fork server: each opens the store for itself. Torch's default
    collate works too, and copies every batch once more.

    >>> dataset = StoreDataset(store, ["raw"])  # doctest: +SKIP
    >>> loader = DataLoader(dataset, batch_size=32, shuffle=True, collate_fn=StoreDataset.collate)  # doctest: +SKIP
    """

    def __init__(self, store: FeatureStore, names: Sequence[str]) -> None:
        store.require(names)
        self.store, self.names = store, tuple(names)
        whole = np.zeros(store.plan.n_rows, bool)  # a list of millions of numbers is slow, and 400 MB
        for shard in store.shards_with(names):
            rows = store.plan.rows(shard)
            whole[rows.start : rows.stop] = True
        whole[[*store.failed(names)]] = False
        self.rows = np.flatnonzero(whole)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Shaped[Tensor, "..."]]:
        """One image: (*shape) by array."""
        return {name: tensor[0] for name, tensor in self.read([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch of images, as `DataLoader` asks for it."""
        return Batch(self.read(indices))

    def read(self, indices: Sequence[int]) -> Rows:
        """Some images: (image, *shape) by array."""
        rows = np.take(self.rows, indices).tolist()
        return {name: from_storage(self.store.gather(name, rows), self.store.arrays[name].dtype) for name in self.names}

    @staticmethod
    def collate(batch: Batch) -> Rows:
        """For `DataLoader(collate_fn=…)`: what `__getitems__` returns is a batch already."""
        return batch.rows
