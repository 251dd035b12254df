"""A store of 665,298 images, LLaVA-1.5's training mix, without its terabytes: plan, ids and log are real."""

import hashlib
import shutil
from pathlib import Path

import numpy as np

from store.reading.reader import FeatureStore
from store.writing.writer import StoreWriter
from tests.benchmarks.store.data import QUICK
from tests.benchmarks.store.lines import Line
from tests.benchmarks.store.stores import commit_without_shards, image_name, planned
from tests.benchmarks.store.timing import FEW_ROUNDS, interleaved

IMAGES = 1_000 if QUICK else 665_298
LOOKUPS = 200
_NOT_READ = "no shard is read"


def ids(folder: Path) -> list[Line]:
    """Opening, and each kind of lookup."""
    path = folder / "large"
    plan, built = planned(IMAGES)
    with StoreWriter.open(path, plan, built, None):
        pass
    store = FeatureStore.open(path)
    rng = np.random.default_rng(3)
    rows: list[int] = []

    def pick() -> None:
        rows[:] = rng.integers(0, IMAGES, LOOKUPS).tolist()
        names[:] = [image_name(row) for row in rows]
        shas[:] = [hashlib.sha256(name.encode()).hexdigest() for name in names]

    names: list[str] = []
    shas: list[str] = []
    pick()
    if [store.ids.row_of_name(name) for name in names[:3]] != rows[:3] or store.ids.row_of_sha(shas[0]) != rows[0]:
        raise AssertionError("a lookup found another row")
    opened = interleaved({"open": lambda: FeatureStore.open(path)}, FEW_ROUNDS)
    took = interleaved(
        {
            "row_of_name": lambda: [store.ids.row_of_name(name) for name in names],
            "row_of_sha": lambda: [store.ids.row_of_sha(sha) for sha in shas],
            "names": lambda: [store.ids.names(row) for row in rows],
        },
        FEW_ROUNDS,
        pick,
    )
    commit_without_shards(path, plan, built)
    logged = interleaved({"open": lambda: FeatureStore.open(path)}, FEW_ROUNDS)
    shutil.rmtree(path)
    return [
        Line(f"open {IMAGES:,} ids", _NOT_READ, opened["open"] * 1e3, "ms", most=100),
        *(Line(f"{what}, one of {IMAGES:,}", _NOT_READ, s / LOOKUPS * 1e6, "us", most=50) for what, s in took.items()),
        Line(f"open the same with all {plan.n_shards:,} shards committed", _NOT_READ, logged["open"] * 1e3, "ms"),
    ]
