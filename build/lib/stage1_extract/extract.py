"""Images -> store: prepared here, encoded by workers; killed at any moment, it goes on where it stopped."""

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import ProgressBar
from stage1_extract.encoding.arrays import with_captured
from stage1_extract.encoding.family import Description, checkpoint_config
from stage1_extract.engines import local, ray, slurm
from stage1_extract.find_family import check_questions, find_family, require_stage2
from stage1_extract.sources import Sources, find_sources, rows_of
from stage1_extract.work.price import price, require_space
from stage1_extract.work.worker import OpenEncoder, Worker, allowed_failures, require_few, use_threads_of
from store.errors import StoreError
from store.layout.fingerprint import spelt_as
from store.layout.plan import Plan, newest_generation, read_plan
from store.layout.schema import default_shard_images
from store.log.commits import SUPERSEDED, read_commit
from store.log.progress import committed_failures, missing_bytes, missing_parts, require_nothing_lost
from store.writing.growth import left_to_derive, plan_to_follow
from store.writing.retry import withdraw_failures
from store.writing.writer import StoreWriter, lock, require_no_archive

_log = logging.getLogger(__name__)


def dry_run(experiment: Experiment, overwrite: bool = False, append: bool = False) -> dict[str, Any]:
    """The price of an extraction; loads no weights (but for a model whose parts cannot be reached)."""
    experiment = with_captured(experiment)
    experiment = experiment if overwrite else _with_stored_arrays(experiment)
    config = checkpoint_config(experiment.model)
    require_stage2(experiment, config)
    check_questions(experiment, config)
    description = find_family(config).describe(experiment, config)
    sources = find_sources(experiment)
    path = experiment.store_path
    wanted = plan_for(experiment, sources, description, {})
    plan, _ = (wanted, None) if overwrite else plan_to_follow(path, wanted, sources.ids(), sources.unreadable, append)
    return price(plan, sources, description, path)


def extract(
    experiment: Experiment, overwrite: bool, append: bool = False, retry_failed: bool = False
) -> dict[str, Any]:
    """Encode what the store does not have yet; returns counts and failures.

    `append` adds images and arrays that the store was not planned for, `retry_failed` tries images again that could not be
    encoded (a file that could not even be read had no content: now it is another image, and appended).

    Raises TooManyFailures (exit 3), DataMissing and CheckpointMissing (exit 5), FingerprintMismatch (exit 4) if the store
    was made by something else, StoreLocked (exit 6), NoSpace (exit 7).
    """
    begun = time.monotonic()
    share = _share(experiment)
    if share is not None:
        _refuse_for_shared({"--retry-failed": retry_failed, "--overwrite": overwrite})
    config = checkpoint_config(experiment.model)
    require_stage2(experiment, config)
    check_questions(experiment, config)
    sources = find_sources(experiment)
    allowed = allowed_failures(experiment.extract.max_failures, len(sources.rows))
    require_few(dict(enumerate_failures(sources)), allowed, sources)
    path = experiment.store_path
    experiment = with_captured(experiment)
    if not overwrite:
        require_no_archive(path)
        experiment = _with_stored_arrays(experiment)
        if (stored := _stored_plan(path)) is not None:
            use_threads_of(stored)
    opened = OpenEncoder.load(experiment, local.devices(experiment)[0])
    description = opened.encoder.description
    _warn(description.notes)
    stall = experiment.extract.stall_seconds
    if overwrite:  # not before it is sure that there is something to replace it with
        _remove(path, stall)
    stored = _stored_plan(path)
    prints = opened.fingerprints() if stored is None else spelt_as(opened.fingerprints(), stored.fingerprints)
    wanted = plan_for(experiment, sources, description, prints)
    plan, ids = plan_to_follow(path, wanted, sources.ids(), sources.unreadable, append or retry_failed)
    leave = left_to_derive(plan, wanted.fingerprints)
    _require_shards_of(plan, experiment)
    readable = {source.sha for source in sources.rows}
    sources = replace(sources, rows=rows_of(plan, ids))
    presence = "exclusive" if share is None else "shared"
    with StoreWriter.open(path, plan, ids, opened.encoder.projector, presence, stall, leave=leave) as writer:
        mine = [shard for shard in range(plan.n_shards) if share is None or shard % share[1] == share[0]]
        require_nothing_lost(path, plan, mine)
        save_resolved(experiment, path)
        if retry_failed:
            spared = withdraw_failures(path, plan, SUPERSEDED, lambda row: ids.sha_of_row(row) in readable)
            _warn_of_spared(spared)
        parts = missing_parts(path, plan, leave)
        missing = sorted({*writer.missing_shards()} & {*mine})
        require_space(missing_bytes(path, plan, leave), path)
        _warn(opened.side_costs() if missing else ())
        _encode(experiment, writer, sources, opened, missing, allowed)
    _warn_of_left(path, plan, leave)
    return {
        "store": str(path),
        "images": sources.names,
        "distinct": plan.n_images,
        **_done(plan, path, [part for part in parts if part[1] in missing], sources),
        "notes": list(description.notes),
        "seconds": round(time.monotonic() - begun, 2),
    }


def _share(experiment: Experiment) -> tuple[int, int] | None:
    """Which worker of how many this run is; None where it does all."""
    index, workers = experiment.extract.worker_index, experiment.extract.num_workers
    if index is None and workers is None:
        return None
    if index is None or workers is None or index >= workers:
        raise ConfigError(
            f"expected --worker-index below --num-workers, both or neither, got {index} and {workers}: correct them"
        )
    return index, workers


def _remove(path: Path, stall_seconds: float) -> None:
    """The store that there may be."""
    if newest_generation(path) is not None:
        with lock(path, "exclusive", stall_seconds):
            shutil.rmtree(path)


def _warn(notes: Iterable[str]) -> None:
    for note in notes:
        _log.warning("note: %s", note)


def _refuse_for_shared(asked: dict[str, bool]) -> None:
    """Refuse flags of runs that share the store with no other (ConfigError, exit 2)."""
    for flag, is_set in asked.items():
        if is_set:
            raise ConfigError(f"expected {flag} in a run of its own, got it for one of several workers: run it first")


def _require_shards_of(plan: Plan, experiment: Experiment) -> None:
    if experiment.store.shard_images not in (None, plan.shard_images):
        raise ConfigError(
            f"store.shard_images: expected {plan.shard_images}, as in {experiment.store_path}, got "
            f"{experiment.store.shard_images}: leave it out"
        )


def _warn_of_spared(shards: Sequence[int]) -> None:
    """Failures that stay, as an image of the same shard is gone."""
    if shards:
        _log.warning("note: not tried again, as images of theirs cannot be read any more: shards %s", shards)


def _warn_of_left(path: Path, plan: Plan, leave: Collection[str]) -> None:
    """Arrays that only another environment may derive."""
    left = set(missing_parts(path, plan)) - set(missing_parts(path, plan, leave))
    if left:
        _log.warning(
            "note: %s was derived in another environment than this one, and is still to be derived there for %d shards: "
            "`python -m store derive projected %s`", ", ".join(sorted(leave)), len(left), path,
        )  # fmt: skip


def _encode(
    experiment: Experiment, writer: StoreWriter, sources: Sources, opened: OpenEncoder, missing: list[int], allowed: int
) -> None:
    """All missing shards, here or by an engine; one bar for all workers."""
    plan = writer.plan
    rows = sum(len(plan.rows(shard)) for shard in missing)
    engine = {"local": local.run, "slurm": slurm.run, "ray": ray.run}[experiment.extract.engine]
    alone = experiment.extract.engine == "local" and local.count_workers(experiment) == 1
    with ProgressBar(what="encode", total=plan.n_images, initial=plan.n_images - rows, unit="images") as bar:
        if alone or experiment.extract.worker_index is not None:
            worker = Worker(experiment, writer, sources, opened, "alone", bar.update)
            worker.failures = committed_failures(writer.path, plan)
            worker.extract(missing, allowed)
            return

        def look() -> None:
            left = writer.missing_shards()
            bar.update(plan.n_images - sum(len(plan.rows(shard)) for shard in left) - bar.done)

        del opened  # workers load their own
        try:
            engine(experiment, writer, allowed, look)
        finally:
            writer.remove_leftovers()
        look()
    if missing:  # each worker saw its own failures
        require_few(committed_failures(writer.path, plan), allowed, sources)


def _done(plan: Plan, path: Path, asked: list[tuple[int, int]], sources: Sources) -> dict[str, Any]:
    """What is in the log now of the shards that were missing."""
    done = [record for generation, shard in asked if (record := read_commit(path, shard, generation)) is not None]
    shards = {record.shard: record.telemetry["tower_images"] for record in done}
    failures = committed_failures(path, plan)
    return {
        "tower_images": sum(shards.values()),
        "shards": plan.n_shards,
        "shards_written": len(shards),
        "bytes_written": sum(file.bytes for record in done for file in record.files.values()),
        "failures": {
            ", ".join(sources.rows[row].names): why for row, why in failures.items() if sources.rows[row].names
        },
    }


def _with_stored_arrays(experiment: Experiment) -> Experiment:
    """A store keeps its arrays, whichever the config names: a shard is always encoded whole."""
    stored = _stored_plan(experiment.store_path)
    arrays = () if stored is None else stored.arrays
    return experiment.with_arrays([*(spec.name for spec in arrays), *experiment.store.arrays])


def _stored_plan(path: Path) -> Plan | None:
    """The plan of a store, None where there is none; damage to it is met where the plan is followed."""
    try:
        return read_plan(path)
    except StoreError:
        return None


def enumerate_failures(sources: Sources) -> Iterator[tuple[int, str]]:
    """Rows that are known to fail before anything is decoded."""
    for row, source in enumerate(sources.rows):
        if source.names[0] in sources.unreadable:
            yield row, sources.unreadable[source.names[0]]


def plan_for(experiment: Experiment, sources: Sources, description: Description, prints: dict[str, Any]) -> Plan:
    """The store that an experiment asks for."""
    return Plan(
        n_images=len(sources.rows),
        shard_images=experiment.store.shard_images or default_shard_images(description.arrays, len(sources.rows)),
        arrays=description.arrays,
        fingerprints=prints,
        geometry=description.geometry,
        identity=experiment.data.identity,
        ids_digest=sources.ids().digest(),
        notes=description.notes,
    )
