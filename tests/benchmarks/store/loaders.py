"""Batches of 32 raw rows, shuffled, as training reads them."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from store.reading.dataset import StoreDataset
from store.reading.reader import FeatureStore
from tests.benchmarks.store.data import BATCH, IMAGES, QUICK, SHAPES, map_flat
from tests.benchmarks.store.lines import Line
from tests.benchmarks.store.reading import WARM
from tests.benchmarks.store.timing import FEW_ROUNDS, ROUNDS, interleaved, random_rows

STEP_SECONDS = 0.030
PASSES = 1 if QUICK else 4
"""Passes over the rows in one measured run: 24 batches, so that starting a loader or a thread is paid once."""


def loaders(folder: Path) -> list[Line]:
    """DataLoader and prefetch thread, each against the loop over a memory map that one would write instead."""
    store = FeatureStore.open(folder / "store")
    for row in range(IMAGES):
        store.gather("raw", [row])
    flat = map_flat(folder, "raw")
    buffer = np.empty((BATCH, *SHAPES["raw"]), np.float16)
    dataset = StoreDataset(store, ["raw"])

    def loader() -> Iterable[object]:
        return DataLoader(dataset, batch_sampler=_batches(), collate_fn=StoreDataset.collate)

    def reused() -> Iterator[object]:
        for rows in _batches():
            yield torch.from_numpy(np.take(flat, rows, axis=0, out=buffer, mode="clip"))

    def fresh() -> Iterator[object]:
        for rows in _batches():
            yield torch.from_numpy(flat[rows])

    loops: dict[str, Callable[[], Iterable[object]]] = {"loader": loader, "reused": reused, "fresh": fresh}
    took = interleaved({name: (lambda loop=loop: _consume(loop())) for name, loop in loops.items()}, ROUNDS)
    steps: dict[str, Callable[[], Iterable[object]]] = {
        "stream": lambda: store.stream(["raw"], _batches()),
        "reused": reused,
    }
    stepped = interleaved({name: (lambda loop=loop: _step(loop())) for name, loop in steps.items()}, FEW_ROUNDS)
    return [
        Line("raw: DataLoader(num_workers=0) / memmap loop, fresh batches", WARM, took["fresh"] / took["loader"], least=0.9),
        Line("raw: DataLoader(num_workers=0) / memmap loop, one reused batch", WARM, took["reused"] / took["loader"], least=0.9),
        Line(
            "raw: prefetch thread / memmap loop, one reused batch, 30 ms step", WARM, stepped["reused"] / stepped["stream"],
            least=1.0,
        ),
    ]  # fmt: skip


def _batches() -> list[list[int]]:
    """Some passes, each in a new order."""
    orders = [random_rows(IMAGES) for _ in range(PASSES)]
    return [order[first : first + BATCH] for order in orders for first in range(0, IMAGES, BATCH)]


def _consume(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _step(batches: Iterable[object]) -> None:
    """The accelerator computes while this process is idle."""
    for _ in batches:
        time.sleep(STEP_SECONDS)
