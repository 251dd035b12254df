"""How long a training step of 30 ms waits for its features, at the real geometry and in 16 bit."""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch

from stage2_prune.session.features import Features
from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, default_shard_images
from store.questions.question import Question
from store.reading.reader import FeatureStore
from store.writing.writer import StoreWriter

STEP_SECONDS = 0.030
IMAGES, BATCH, STEPS = 160, 10, 300


def share_of_a_training_step(folder: Path) -> dict[str, float]:
    """Batches of ten questions about ten images, `raw` and `projected`: 59 MB a step; shuffled."""
    store = _store(folder / "store")
    rng = np.random.default_rng(0)
    picks = rng.integers(0, IMAGES, (STEPS, BATCH))
    batches = [[Question(question_id=str(row), image=f"{row}.png", question="?") for row in rows] for rows in picks]
    features = Features(store, {"raw"}, torch.device("cpu"))
    waited, begun = 0.0, time.perf_counter()
    arriving = features.batches(batches)
    for _ in range(STEPS):
        asked = time.perf_counter()
        next(arriving)
        waited += time.perf_counter() - asked
        time.sleep(STEP_SECONDS)  # the step itself: the accelerator computes, this process is idle
    total = time.perf_counter() - begun
    read = STEPS * BATCH * sum(spec.row_bytes for spec in store.arrays.values())
    return {
        "MB read per step": read / STEPS / 1e6,
        "ms waited per step, the first included": 1000 * waited / STEPS,
        "share of the time spent waiting for data, %": 100 * waited / total,
    }


def _store(path: Path) -> FeatureStore:
    specs = (
        ArraySpec(name="raw", axes=("patch", "hidden"), shape=(576, 1024), dtype="float16"),
        ArraySpec(name="projected", axes=("patch", "embed"), shape=(576, 4096), dtype="float16"),
    )
    ids = ImageIds.build([(hashlib.sha256(bytes([row])).hexdigest(), [f"{row}.png"]) for row in range(IMAGES)])
    plan = Plan(
        n_images=IMAGES,
        shard_images=default_shard_images(specs, IMAGES),
        arrays=specs,
        fingerprints={},
        geometry=Geometry(grid=(24, 24), has_cls=True, tokens=576),
        identity="content",
        ids_digest=ids.digest(),
    )
    rng = np.random.default_rng(0)
    with StoreWriter.open(path, plan, ids, None) as writer:
        for shard in writer.missing_shards():
            count = len(plan.rows(shard))
            arrays = {one.name: rng.random((count, *one.shape), np.float32).astype(np.float16) for one in specs}
            writer.commit_shard(shard, arrays, {}, {})
    os.sync()  # so that writing it is not measured
    return FeatureStore.open(path)
