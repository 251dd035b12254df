"""Images -> store: plan the extraction here, let workers encode it. A killed run continues where it stopped."""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.counted import counted
from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import ProgressBar
from stage1_extract.encoding.arrays import with_captured
from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.engines import local, ray, slurm
from stage1_extract.find_family import check_questions, find_family, require_stage2
from stage1_extract.sources import Sources, find_sources, rows_of
from stage1_extract.work.asked import idle_shards, note_of_further, rows_not_asked_for, tolerance
from stage1_extract.work.counts import counts
from stage1_extract.work.failures import allowed_failures, require_few, surplus
from stage1_extract.work.open_encoder import OpenEncoder
from stage1_extract.work.planning import (
    known_failures,
    plan_for,
    refuse_for_shared,
    require_shards_of,
    stored_plan,
    warn,
    with_stored_arrays,
    worker_share,
)
from stage1_extract.work.price import price, require_space
from stage1_extract.work.worker import Worker
from store.layout.fingerprint import spelt_as
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.tensors import worker_devices
from store.log.commits import SUPERSEDED
from store.log.progress import bytes_of, committed_failures, missing_parts, require_nothing_lost
from store.writing.growth import left_to_derive, plan_to_follow
from store.writing.own_entries import remove_store, require_store_or_empty
from store.writing.retry import withdraw_failures
from store.writing.writer import StoreWriter, require_no_archive

_log = logging.getLogger(__name__)


def dry_run(experiment: Experiment, overwrite: bool = False, append: bool = False) -> dict[str, Any]:
    """Return the price of an extraction (see work/price.py).

    No weights are loaded, except for a model whose parts cannot be reached apart.
    """
    _check_before_work(experiment)
    experiment = with_captured(experiment) if overwrite else with_stored_arrays(with_captured(experiment))
    config = checkpoint_config(experiment.model)
    require_stage2(experiment, config)
    check_questions(experiment, config)
    description = find_family(config, experiment.model.vision_family).describe(experiment, config)
    sources, path = find_sources(experiment), experiment.store_path
    wanted = plan_for(experiment, sources, description, {})
    named = sources.ids()
    plan, ids = (wanted, named) if overwrite else plan_to_follow(path, wanted, named, sources.unreadable, append)
    parts = [(0, shard) for shard in range(plan.n_shards)]
    if plan is not wanted:  # the extraction continues the store
        missing = missing_parts(path, plan)
        idle = idle_shards(plan, [shard for _, shard in missing], rows_not_asked_for(named, plan, ids))
        parts = [part for part in missing if part[1] not in idle]
    stops = surplus(dict(known_failures(sources)), experiment.extract.max_failures, sources)
    return price(plan, parts, sources, description, path, stops)


def extract(
    experiment: Experiment, overwrite: bool, append: bool = False, retry_failed: bool = False
) -> dict[str, Any]:
    """Encode every image that the store lacks.

    Args:
        experiment: Names checkpoint, images and store.
        overwrite: Whether to replace a store that exists.
        append: Whether to add images and arrays that the store was not planned for.
        retry_failed: Whether to try images again that could not be encoded. A file that could not be read had no content;
            once it can be read, it is another image and is appended.

    Returns:
        Counts, seconds and failures, as JSON-able values.

    Raises:
        TooManyFailures: More images failed than the config tolerates (exit 3).
        FingerprintMismatch: The store was made by something else (exit 4).
        DataMissing, CheckpointMissing: Something must be made or fetched first (exit 5).
        StoreLocked: Another run writes to the store (exit 6).
        NoSpace: The disk is too small (exit 7).

    """
    begun = time.monotonic()
    share = worker_share(experiment)
    if share is not None:
        refuse_for_shared({"--retry-failed": retry_failed, "--overwrite": overwrite})
    _check_before_work(experiment)
    config = checkpoint_config(experiment.model)
    require_stage2(experiment, config)
    check_questions(experiment, config)
    sources = find_sources(experiment)
    allowed = allowed_failures(experiment.extract.max_failures, len(sources.rows))
    require_few(dict(known_failures(sources)), allowed, sources)
    job = _prepare(experiment, sources, allowed, overwrite, append or retry_failed)
    result = _run(job, share, retry_failed)
    _warn_of_underived(job)
    return result | {"seconds": round(time.monotonic() - begun, 2)}


def _check_before_work(experiment: Experiment) -> None:
    """Refuse a folder that is no store, and parameters that the engine does not know (exit 2)."""
    require_store_or_empty(experiment.store_path)
    if experiment.extract.engine == "slurm":
        slurm.check_parameters(experiment.extract.slurm)


@dataclass(frozen=True)
class _Job:
    """An extraction that is ready to run."""

    experiment: Experiment
    path: Path
    """Folder of the store."""
    plan: Plan
    ids: ImageIds
    sources: Sources
    """The images by the plan's rows."""
    readable: frozenset[str]
    """Identities of the images that the experiment names now."""
    opened: OpenEncoder
    underived: Collection[str]
    """Derived arrays that only another environment may make."""
    allowed: int
    """How many images may fail."""


def _prepare(experiment: Experiment, sources: Sources, allowed: int, overwrite: bool, append: bool) -> _Job:
    """Load the encoder and make the plan to follow."""
    path, stall_seconds = experiment.store_path, experiment.extract.stall_seconds
    experiment = with_captured(experiment)
    stored = None
    if not overwrite:
        require_no_archive(path)
        experiment = with_stored_arrays(experiment)
        stored = stored_plan(path)
    opened = OpenEncoder.load(experiment, worker_devices(experiment.model.device)[0], stored, len(sources.rows))
    warn(opened.encoder.description.notes)
    if overwrite:  # only now, when it is certain that something will replace the store
        remove_store(path, stall_seconds)
    stored = stored_plan(path)
    prints = opened.fingerprints() if stored is None else spelt_as(opened.fingerprints(), stored.fingerprints)
    wanted = plan_for(experiment, sources, opened.encoder.description, prints)
    plan, ids = plan_to_follow(path, wanted, named := sources.ids(), sources.unreadable, append)
    require_shards_of(plan, experiment)
    return _Job(
        experiment=experiment,
        path=path,
        plan=plan,
        ids=ids,
        sources=replace(sources, rows=rows_of(plan, ids), not_asked_for=rows_not_asked_for(named, plan, ids)),
        readable=frozenset(source.sha for source in sources.rows),
        opened=opened,
        underived=left_to_derive(plan, wanted.fingerprints),
        allowed=allowed,
    )


def _run(job: _Job, share: tuple[int, int] | None, retry_failed: bool) -> dict[str, Any]:
    """Encode the missing shards of a job, or one worker's share of them; return counts and failures."""
    path, plan, projector = job.path, job.plan, job.opened.encoder.projector
    presence, stall_seconds = "exclusive" if share is None else "shared", job.experiment.extract.stall_seconds
    with StoreWriter.open(path, plan, job.ids, projector, presence, stall_seconds, leave=job.underived) as writer:
        own_shards = [shard for shard in range(plan.n_shards) if share is None or shard % share[1] == share[0]]
        require_nothing_lost(path, plan, own_shards)
        save_resolved(job.experiment, path)
        if retry_failed:
            _withdraw_failures(job)
        parts = missing_parts(path, plan, job.underived)
        writer.idle = idle_shards(plan, [shard for _, shard in parts], job.sources.not_asked_for)
        parts = [part for part in parts if part[1] not in writer.idle]
        missing = sorted({shard for _, shard in parts} & {*own_shards})
        require_space(bytes_of(plan, parts), path)
        warn(job.opened.side_costs() if missing else ())
        _encode(job, writer, missing)
    warn(note_of_further(path, plan, job.sources, job.underived))
    counted_now = counts(path, plan, job.sources, [part for part in parts if part[1] in missing], job.underived)
    return {
        "store": str(path),
        "images": job.sources.names,
        "distinct": counted_now["asked"]["images"],
        **counted_now,
        "notes": list(job.opened.encoder.description.notes),
    }


def _encode(job: _Job, writer: StoreWriter, missing: list[int]) -> None:
    """Encode all missing shards, in this process or by an engine, with one progress bar for all workers."""
    experiment, plan = job.experiment, writer.plan
    rows = sum(len(plan.rows(shard)) for shard in missing)
    engine = {"local": local.run, "slurm": slurm.run, "ray": ray.run}[experiment.extract.engine]
    alone = experiment.extract.engine == "local" and local.count_workers(experiment) == 1
    with ProgressBar(what="encode", total=plan.n_images, initial=plan.n_images - rows, unit="images") as bar:
        if alone or experiment.extract.worker_index is not None:
            worker = Worker(
                experiment, writer, job.sources, job.opened, "alone", bar.update,
                waiting=lambda what: bar.note(waiting_for=what),
            )  # fmt: skip
            worker.failures = committed_failures(writer.path, plan)
            worker.extract(missing, job.allowed)
            return

        def look() -> None:
            left = writer.missing_shards()
            bar.update(plan.n_images - sum(len(plan.rows(shard)) for shard in left) - bar.done)

        allowed = job.allowed + tolerance(writer.path, plan, missing, job.sources.not_asked_for)
        try:
            engine(experiment, writer, allowed, look)
        finally:
            writer.remove_leftovers()
        look()
    if missing:  # each worker knew its own failures only
        require_few(committed_failures(writer.path, plan), job.allowed, job.sources)


def _withdraw_failures(job: _Job) -> None:
    """Withdraw the shards whose failures are tried again; warn of those that stay, as they hold images that are gone."""
    kept = withdraw_failures(
        job.path, job.plan, SUPERSEDED, lambda row: job.ids.sha_of_row(row) in job.readable, job.sources.not_asked_for
    )
    if kept:
        _log.warning(
            "note: the failures in shards %s are not tried again, as other images of these shards cannot be read, or are not "
            "named by this config", kept,
        )  # fmt: skip


def _warn_of_underived(job: _Job) -> None:
    """Warn of derived arrays that lack shards which only another environment may derive."""
    left = set(missing_parts(job.path, job.plan)) - set(missing_parts(job.path, job.plan, job.underived))
    if left:
        names, missing = ", ".join(sorted(job.underived)), counted(len(left), "shard")
        _log.warning(
            "note: %s of this store was derived in another environment, and still lacks %s: to make all bits alike, derive "
            "it there with `python -m store derive projected %s`", names, missing, job.path,
        )  # fmt: skip
