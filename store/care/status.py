"""Telling how far a run is; reads only the plan, the log, the leases and the ids of a store, so it can be asked at any time."""

import statistics
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from configs.counted import counted
from configs.errors import EXTRACT
from configs.experiment import StoreLocation
from store.care.run_status import as_text as run_as_text
from store.care.run_status import has_begun, run_folder_of, run_status
from store.errors import StoreError, StoreMissing
from store.layout.plan import read_plan
from store.log.commits import SUPERSEDED, intact_records
from store.log.leases import live_leases
from store.log.progress import nameless_shards
from store.reading.opening import stored_ids
from store.reading.remote import reached
from store.writing.lock import STALL_SECONDS

RECENT = 50
"""How many of the last commits the rate is computed from."""


def status(location: StoreLocation) -> dict[str, Any]:
    """Count committed, running and failed work of a store; estimate images per second and the seconds that are left.

    Shards that are not committed and whose images have lost all their names are not counted: they are never encoded.
    """
    with reached(location) as (store, _):
        plan = read_plan(store)
        logs = [intact_records(store, generation) for generation in range(plan.generation + 1)]
        holders = live_leases(store, STALL_SECONDS)
        parts = [(number, shard) for number in range(plan.generation + 1) for shard in plan.shards_of(number)]
        missing = {shard for number, shard in parts if shard not in logs[number]}
        failed = {row for log in logs for row, why in log.failures.items() if why != SUPERSEDED}
        nameless = frozenset[int]()
        if failed or missing:
            with suppress(StoreError):  # the ids may be damaged, or not written yet
                ids = stored_ids(store, plan)
                nameless = nameless_shards(plan, ids, missing)
                failed = {row for row in failed if ids.names(row)}  # the others: earlier contents of changed files
    uncounted, left = (sum(len(plan.rows(shard)) for shard in shards) for shards in (nameless, missing - nameless))
    # Compacted records are old, and reading all of them again would take longer than anything else here.
    recent = [record for log in logs for record in log.single.values() if "ended" in record.telemetry]
    rate = images_per_second([(r.telemetry["ended"], r.last_row - r.first_row + 1) for r in recent])
    return {
        "path": str(location),
        "images": plan.n_images - uncounted,
        "images_committed": plan.n_images - uncounted - left,
        "shards": plan.n_shards - len(nameless),
        "shards_committed": plan.n_shards - len(missing),
        "in_flight": {str(shard): str(holder) for shard, holder in holders.items()},
        "failed": len(failed),
        "images_per_second": rate,
        "eta_seconds": 0.0 if not left else None if not rate else left / rate,
    }


def shard_counts(location: StoreLocation) -> dict[str, int | None]:
    """Count the committed shards and all shards of a store, as `status` does; None where damage hides the numbers."""
    names = ("shards_committed", "shards")
    try:
        counts = status(location)
    except StoreError:
        return dict.fromkeys(names)
    return {name: counts[name] for name in names}


def missing_shards(counts: Mapping[str, int | None]) -> str:
    """Return the end of a sentence about what `shard_counts` returned; an empty text if all shards are committed."""
    done, total = counts["shards_committed"], counts["shards"]
    if done == total:
        return ""
    return f"; {done} of {total} shards are committed: {EXTRACT} encodes the other shards whose images a config names"


def status_of_run(location: StoreLocation | None, run: Path | None) -> dict[str, Any]:
    """Return the status of a store and, under the key `run`, of the run folder around it; either may be missing.

    Args:
        location: A store, or, if `run` is None, a store or a run folder.
        run: The run folder.

    Raises:
        StoreMissing: there is neither a store nor a run that has begun (exit 5).
    """
    local = location if isinstance(location, Path) else None
    folder = run if run is not None or local is None else run_folder_of(local)
    store = local / "store" if local is not None and folder == local else location
    progress = None if folder is None else run_status(folder)
    try:
        return (status(store) if store is not None else {}) | {"run": progress}
    except StoreMissing:
        if progress is None or not has_begun(progress):
            raise
        return {"path": str(store), "run": progress}


def images_per_second(ended: list[tuple[float, int]]) -> float | None:
    """Compute the rate of the last commits; None if there are too few commits to tell.

    Pauses between runs are left out: a gap far above the median gap counts as a pause.

    Args:
        ended: For each commit, the time at which it ended, in seconds, and its number of images.
    """
    last = sorted(ended)[-RECENT:]
    gaps = [(after - before, images) for (before, _), (after, images) in pairwise(last)]
    if not gaps:
        return None
    usual = statistics.median(gap for gap, _ in gaps)
    working = [(gap, images) for gap, images in gaps if gap <= 10 * usual]
    seconds = sum(gap for gap, _ in working)
    return sum(images for _, images in working) / seconds if seconds > 0 else None


def as_text(progress: dict[str, Any]) -> str:
    """Format a status for a reader."""
    parts = [] if "images" not in progress else [_store_as_text(progress)]
    if progress.get("run"):
        parts.append(run_as_text(progress["run"]))
    return "\n".join(filter(None, parts))


def _store_as_text(progress: dict[str, Any]) -> str:
    rate, eta = progress["images_per_second"], progress["eta_seconds"]
    lines = [
        f"{progress['path']}: {progress['images_committed']} of {progress['images']} images, {progress['shards_committed']} of "
        f"{progress['shards']} shards committed; {counted(progress['failed'], 'image')} failed"
    ]
    lines += [f"  in flight: shard {shard} by {holder}" for shard, holder in progress["in_flight"].items()]
    if eta is None:
        lines += ["  ETA unknown: too few commits to tell"]
    elif eta > 0:
        lines += [f"  {rate:.1f} images/s lately, {timedelta(seconds=round(eta))} to go"]
    if eta != 0 and not progress["in_flight"]:
        lines += [f"  nothing is in flight: {EXTRACT} encodes the missing shards whose images a config names"]
    return "\n".join(lines)
