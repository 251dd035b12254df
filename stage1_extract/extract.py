"""Images -> store: prepared here, encoded by workers; killed at any moment, it goes on where it stopped."""

import logging
import shutil
import time
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from configs.errors import ConfigError
from configs.experiment import Experiment
from configs.load import save_resolved
from stage1_extract.engines import local, ray, slurm
from stage1_extract.family import Description, checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.price import price, require_space
from stage1_extract.sources import Sources, find_sources
from stage1_extract.worker import OpenEncoder, Worker, allowed_failures, require_few
from store.commits import read_commits
from store.plan import PLAN, Plan
from store.schema import default_shard_images
from store.writer import StoreWriter

_log = logging.getLogger(__name__)


def dry_run(experiment: Experiment) -> dict[str, Any]:
    """The price of an extraction; loads no weights (but for a model whose parts cannot be reached)."""
    config = checkpoint_config(experiment.model)
    description = find_family(config).describe(experiment, config)
    sources = find_sources(experiment)
    plan = plan_for(experiment, sources, description, {})
    return price(plan, sources, description, experiment.store_path)


def extract(experiment: Experiment, overwrite: bool) -> dict[str, Any]:
    """Encode what the store does not have yet; returns counts and failures.

    Raises TooManyFailures (exit 3), DataMissing and CheckpointMissing (exit 5), FingerprintMismatch (exit 4) if the store
    was made by something else, StoreLocked (exit 6), NoSpace (exit 7).
    """
    begun = time.monotonic()
    share = _share(experiment)
    sources = find_sources(experiment)
    allowed = allowed_failures(experiment.extract.max_failures, len(sources.rows))
    require_few(dict(enumerate_failures(sources)), allowed, sources)
    opened = OpenEncoder.load(experiment, local.devices(experiment)[0])
    description = opened.encoder.description
    for note in description.notes:
        _log.warning("note: %s", note)
    plan = plan_for(experiment, sources, description, opened.fingerprints())
    path = experiment.store_path
    if overwrite and (path / PLAN).exists():
        shutil.rmtree(path)
    presence = "exclusive" if share is None else "shared"
    stall = experiment.extract.stall_seconds
    with StoreWriter.open(path, plan, sources.ids(), opened.encoder.projector, presence, stall) as writer:
        save_resolved(experiment, path)
        missing = [s for s in writer.missing_shards() if share is None or s % share[1] == share[0]]
        sizes = [plan.layout(a.name).file_bytes(len(plan.rows(s))) for a in plan.arrays for s in missing]
        require_space(sum(sizes), path)
        _encode(experiment, writer, sources, opened, missing, allowed)
    return {
        "store": str(path),
        "images": sources.names,
        "distinct": len(sources.rows),
        **_done(plan, path, missing, sources),
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


def _encode(
    experiment: Experiment, writer: StoreWriter, sources: Sources, opened: OpenEncoder, missing: list[int], allowed: int
) -> None:
    """All missing shards, here or by an engine; one bar for all workers."""
    plan = writer.plan
    rows = sum(len(plan.rows(shard)) for shard in missing)
    engine = {"local": local.run, "slurm": slurm.run, "ray": ray.run}[experiment.extract.engine]
    alone = experiment.extract.engine == "local" and local.count_workers(experiment) == 1
    with tqdm(total=plan.n_images, initial=plan.n_images - rows, desc="encode", unit="image", disable=None) as bar:
        if alone or experiment.extract.worker_index is not None:
            worker = Worker(experiment, writer, sources, opened, "alone", bar.update)
            worker.failures = {r: why for c in read_commits(writer.path).values() for r, why in c.failures.items()}
            worker.extract(missing, allowed)
            return

        def look() -> None:
            left = writer.missing_shards()
            bar.update(plan.n_images - sum(len(plan.rows(shard)) for shard in left) - bar.n)

        del opened  # workers load their own
        engine(experiment, writer, allowed, look)
        look()


def _done(plan: Plan, path: Any, asked: list[int], sources: Sources) -> dict[str, Any]:
    """What is in the log now of the shards that were missing."""
    records = read_commits(path)
    new = [records[shard] for shard in asked if shard in records]
    failures = {row: why for record in records.values() for row, why in record.failures.items()}
    return {
        "tower_images": sum(record.telemetry["tower_images"] for record in new),
        "shards": plan.n_shards,
        "shards_written": len(new),
        "bytes_written": sum(file.bytes for record in new for file in record.files.values()),
        "failures": {", ".join(sources.rows[row].names): why for row, why in sorted(failures.items())},
    }


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
