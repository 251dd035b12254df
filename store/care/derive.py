"""Making `projected` from `raw` with the projector in the store: the same bits, without an image or a vision tower."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs.counted import counted
from configs.errors import EXTRACT
from configs.progress import ProgressBar
from store.errors import StoreMissing
from store.layout.environment import torch_environment, use_threads
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.plan import Plan
from store.layout.schema import ArraySpec
from store.layout.tensors import pick_device, to_storage
from store.log.progress import nameless_shards
from store.projectors import Projector, build, project_image
from store.reading.by_name import read_rows
from store.reading.projector_state import ProjectorState
from store.reading.reader import FeatureStore
from store.writing.growth import grown
from store.writing.writer import StoreWriter

RAW, PROJECTED = "raw", "projected"
_log = logging.getLogger(__name__)


def derive_projected(path: Path, device_name: str) -> int:
    """Compute the missing shards of `projected`, one shard at a time; a later call continues where an earlier call stopped.

    Shards of which `raw` is missing are left out, and a warning says how many.

    Args:
        path: Folder of the store.
        device_name: Device to compute on, such as `auto` or `cpu`.

    Returns:
        The number of shards that were computed.

    Raises:
        StoreMissing: the store has no `raw` or no projector (exit 5).
        FingerprintMismatch: `projected` was begun in another environment (exit 4).
        StoreLocked: another process writes (exit 6).
        NoSpace: the disk is full or read-only (exit 7).
    """
    device = pick_device(device_name)
    store = FeatureStore.open(path)
    store.require([RAW])
    state = store.projector
    if state is None:
        raise StoreMissing(f"expected a projector in {path}, it has none: `projected` can only be made by {EXTRACT}")
    projector = build(state, device)
    use_threads(store.fingerprint(RAW).numeric)
    numeric = numeric_of_derived(store.fingerprint(RAW).numeric, torch_environment(device))
    plan = store.plan if PROJECTED in store.arrays else _with_projected(store, state, projector, numeric)
    with StoreWriter.open(path, plan, store.ids, state) as writer:
        missing = [shard for shard in range(plan.n_shards) if PROJECTED in writer.missing_arrays(shard)]
        ready = [shard for shard in missing if writer.missing_arrays(shard) == [PROJECTED]]
        waiting = {*missing} - {*ready}
        if waiting := waiting - nameless_shards(plan, store.ids, waiting):
            _log.warning(
                "note: %s cannot be projected, because `raw` is not extracted yet: %s encodes the images that a config names",
                counted(len(waiting), "shard"),
                EXTRACT,
            )
        failed = store.failed([RAW])
        if ready:
            _require_one_environment(path, plan, numeric)
        for shard in ProgressBar(ready, "project", unit="shards"):
            _derive_shard(writer, store, projector, shard, failed)
    return len(ready)


def numeric_of_derived(raw: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return the numeric part of the fingerprint of an array that is made from `raw` in an environment.

    It equals the numeric part of `raw` if `raw` was made in the same environment. Otherwise it describes the environment in
    which the array is made, and under the key `raw` the fields in which the environment of `raw` differed.
    """
    elsewhere = {field: raw[field] for field in environment if field in raw and raw[field] != environment[field]}
    return raw | environment | ({RAW: elsewhere} if elsewhere else {})


def _with_projected(store: FeatureStore, state: ProjectorState, projector: Projector, numeric: dict[str, Any]) -> Plan:
    """Plan the generation of a store that adds `projected`."""
    semantic = store.fingerprint(RAW).semantic | {"projector_sha256": state.sha256}
    made_by = Fingerprint(semantic=semantic, numeric=numeric)
    return grown(store.plan, store.ids, [], [(_spec(store, projector), made_by)], derived=True)[0]


def _require_one_environment(path: Path, plan: Plan, numeric: dict[str, Any]) -> None:
    """Refuse to continue `projected` in another environment than it was begun in; warn if `raw` was made in another.

    With two environments, some images would have bits that the fingerprint of the array does not describe.
    """
    advice = f"go on with it where it was begun, or make all of it here: `python -m store drop {PROJECTED} {path}`, then derive"
    what = f"the environment in which {PROJECTED} of {path} was begun"
    require_equal(what, plan.fingerprints[PROJECTED].numeric, numeric, advice)
    for field, value in numeric.get(RAW, {}).items():
        _log.warning(
            "note: %s was made elsewhere (%s: %s, here %s): values derived here may be only close to those that an "
            "extraction makes there; the fingerprint records both environments", RAW, field, value, numeric[field],
        )  # fmt: skip


def _spec(store: FeatureStore, projector: Projector) -> ArraySpec:
    """Describe `projected`; its shape is found by projecting a row."""
    rows = store.rows_with([RAW])[:1]
    if not rows:
        raise StoreMissing(f"expected extracted images in {store.path}, there are none yet: run {EXTRACT} first")
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
    for index, row in enumerate(rows):
        if row not in failures:
            values[index] = _project(store, projector, row)[0]
            lease.beat()
    telemetry = {"began": began, "ended": time.time(), "tower_images": 0, "worker": "derive"}
    writer.commit_shard(shard, {PROJECTED: values}, failures, telemetry, lease)


def _project(store: FeatureStore, projector: Projector, row: int) -> Any:
    raw = read_rows(store, RAW, [row])
    device = next(projector.parameters()).device
    return to_storage(project_image(projector, raw.to(device)))
