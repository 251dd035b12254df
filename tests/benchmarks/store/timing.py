"""Runs that take turns. With numpy alone: the environment of the other libraries imports this too."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.benchmarks.store.data import BATCH, IMAGES, QUICK

ROUNDS = 2 if QUICK else 31
FEW_ROUNDS = 2 if QUICK else 9
"""Where a round takes seconds."""
Reader = Callable[[list[int]], Any]
"""Reads these rows; what it returns is freed within its time."""
_rng = np.random.default_rng(1)


def random_rows(count: int = BATCH) -> list[int]:
    """Distinct rows that no reader knows beforehand."""
    return _rng.permutation(IMAGES)[:count].tolist()


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    prepare: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each by `clock`: every round runs all in a random order, after a round that does not count.

    `prepare` comes before every run, outside its time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name in _rng.permutation(list(runs)).tolist():
            prepare()
            begun = clock()
            runs[name]()
            if turn:
                seconds[name].append(clock() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def interleaved_readers(readers: Mapping[str, Reader], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds to read one batch of fresh random rows; a baseline on the same rows would warm them for others."""
    picked: list[int] = []

    def pick() -> None:
        picked[:] = random_rows()

    return interleaved({name: (lambda read=read: read(picked)) for name, read in readers.items()}, rounds, pick)


def fastest(forms: Mapping[str, Reader]) -> str:
    """The quickest of several ways to do the same, by two calls each."""
    seconds = {name: [] for name in forms}
    for _ in range(2):
        for name, read in forms.items():
            rows, begun = random_rows(), time.perf_counter()
            read(rows)
            seconds[name].append(time.perf_counter() - begun)
    return min(forms, key=lambda name: min(seconds[name]))
