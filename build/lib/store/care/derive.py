"""`projected` from `raw`, with the projector in the store: no image, no vision tower, the same bits."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.progress import ProgressBar
from store.errors import StoreMissing
from store.layout.environment import torch_environment, use_threads
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.plan import Plan
from store.layout.schema import ArraySpec
from store.layout.tensors import from_storage, pick_device, to_storage
from store.projectors import Projector, build, project_image
from store.reading.reader import FeatureStore
from store.writing.growth import grown
from store.writing.writer import StoreWriter

RAW, PROJECTED = "raw", "projected"
_log = logging.getLogger(__name__)


def derive_projected(path: Path, device_name: str) -> int:
    """Compute what is missing of `projected`, a shard at a time, and return how many shards that was; goes on where it
    stopped. A shard of which `raw` is missing is left out, and said.

    Raises StoreMissing (exit 5) for a store without `raw` or projector, FingerprintMismatch (exit 4) where another
    environment has begun it, StoreLocked (exit 6), NoSpace (exit 7).
    """
    device = pick_device(device_name)
    store = FeatureStore.open(path)
    store.require([RAW])
    state = store.projector
    if state is None:
        raise StoreMissing(
            f"expected a projector in {path}, it has none: `projected` can only be made by `make extract`"
        )
    projector = build(state, device)
    use_threads(store.fingerprint(RAW).numeric)
    plan, numeric = store.plan, numeric_of_derived(store.fingerprint(RAW).numeric, torch_environment(device))
    if PROJECTED not in store.arrays:
        semantic = store.fingerprint(RAW).semantic | {"projector_sha256": state.sha256}
        made = Fingerprint(semantic=semantic, numeric=numeric)
        plan, _ = grown(plan, store.ids, [], [(_spec(store, projector), made)], derived=True)
    with StoreWriter.open(path, plan, store.ids, state) as writer:
        wanted = [shard for shard in range(plan.n_shards) if PROJECTED in writer.missing_arrays(shard)]
        ready = [shard for shard in wanted if writer.missing_arrays(shard) == [PROJECTED]]
        if len(ready) < len(wanted):
            _log.warning(
                "note: %d shards are not extracted yet, so not projected: run `make extract`", len(wanted) - len(ready)
            )
        failed = store.failed([RAW])
        if ready:
            _require_one_environment(path, plan, numeric)
        for shard in ProgressBar(ready, "project", unit="shards"):
            _derive_shard(writer, store, projector, shard, failed)
    return len(ready)


def numeric_of_derived(raw: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """The numeric part of what is made of `raw` in an environment: that of `raw` where it is the same.

    Otherwise it says where the array was made, and under `raw` in what the making of `raw` differs.
    """
    elsewhere = {field: raw[field] for field in environment if field in raw and raw[field] != environment[field]}
    return raw | environment | ({RAW: elsewhere} if elsewhere else {})


def _require_one_environment(path: Path, plan: Plan, numeric: dict[str, Any]) -> None:
    """One array, one environment: otherwise some images would have bits that the fingerprint does not speak of."""
    advice = f"go on with it where it was begun, or make all of it here: `python -m store drop {PROJECTED} {path}`, then derive"
    what = f"the environment in which {PROJECTED} of {path} was begun"
    require_equal(what, plan.fingerprints[PROJECTED].numeric, numeric, advice)
    for field, value in numeric.get(RAW, {}).items():
        _log.warning(
            "note: %s was made elsewhere (%s: %s, here %s): what is derived here may be only close to what the extraction "
            "would make there; the fingerprint says so", RAW, field, value, numeric[field],
        )  # fmt: skip


def _spec(store: FeatureStore, projector: Projector) -> ArraySpec:
    """Of `projected`; its width is what the projector makes of a row."""
    rows = store.rows_with([RAW])[:1]
    if not rows:
        raise StoreMissing(f"expected extracted images in {store.path}, there are none yet: run `make extract` first")
    raw = store.arrays[RAW]
    _, patches, embed = _project(store, projector, rows[0]).shape
    return ArraySpec(name=PROJECTED, axes=("patch", "embed"), shape=(patches, embed), dtype=raw.dtype)


def _derive_shard(
    writer: StoreWriter, store: FeatureStore, projector: Projector, shard: int, failed: Mapping[int, str]
) -> None:
    began, rows, spec = time.time(), writer.plan.rows(shard), writer.plan.array(PROJECTED)
    lease = writer.claim(shard)
    if lease is None:
        return
    values = np.full((len(rows), *spec.shape), spec.fill, spec.storage)
    failures = {row: failed[row] for row in rows if row in failed}
    for place, row in enumerate(rows):
        if row not in failures:
            values[place] = _project(store, projector, row)[0]
            lease.beat()
    telemetry = {"began": began, "ended": time.time(), "tower_images": 0, "worker": "derive"}
    writer.commit_shard(shard, {PROJECTED: values}, failures, telemetry, lease)


def _project(store: FeatureStore, projector: Projector, row: int) -> Any:
    raw = from_storage(store.gather(RAW, [row]), store.arrays[RAW].dtype)
    device = next(projector.parameters()).device
    return to_storage(project_image(projector, raw.to(device)))
