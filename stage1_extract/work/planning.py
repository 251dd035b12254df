"""Decide what an extraction encodes: the plan that an experiment asks for, and the worker's share of it."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.experiment import Experiment
from stage1_extract.encoding.family import Description
from stage1_extract.sources import Sources
from store.errors import StoreError
from store.layout.plan import Plan, read_plan
from store.layout.schema import default_shard_images

_log = logging.getLogger(__name__)


def plan_for(experiment: Experiment, sources: Sources, description: Description, prints: dict[str, Any]) -> Plan:
    """Make the plan of a new store that holds what an experiment asks for.

    Args:
        experiment: Names the images' identity and the size of a shard.
        sources: The distinct images.
        description: Geometry and arrays of the model.
        prints: Fingerprint of each array; empty for a plan whose price alone is of interest.

    """
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


def stored_plan(path: Path) -> Plan | None:
    """Read the plan of a store; None if there is no plan, or a damaged plan, which is reported when the plan is followed."""
    try:
        return read_plan(path)
    except StoreError:
        return None


def with_stored_arrays(experiment: Experiment) -> Experiment:
    """Add the arrays of the experiment's store to those that the config names, as a shard is always encoded whole."""
    stored = stored_plan(experiment.store_path)
    arrays = () if stored is None else stored.arrays
    return experiment.with_arrays([*(spec.name for spec in arrays), *experiment.store.arrays])


def worker_share(experiment: Experiment) -> tuple[int, int] | None:
    """Return this worker's index and the number of workers; None for a run that encodes everything.

    Raises ConfigError (exit 2) where only one of the two is given, or the index is too large.
    """
    index, workers = experiment.extract.worker_index, experiment.extract.num_workers
    if index is None and workers is None:
        return None
    if index is None or workers is None or index >= workers:
        raise ConfigError(
            f"expected --worker-index below --num-workers, both or neither, got {index} and {workers}: correct them"
        )
    return index, workers


def refuse_for_shared(flags: dict[str, bool]) -> None:
    """Raise ConfigError (exit 2) if a flag is set that only a run without other workers may have."""
    for flag, is_set in flags.items():
        if is_set:
            raise ConfigError(
                f"expected {flag} in a run of its own, got it for one of several workers: extract with {flag} and one worker "
                f"first, then start the workers without {flag}"
            )


def require_shards_of(plan: Plan, experiment: Experiment) -> None:
    """Raise ConfigError (exit 2) if the config asks for another size of shard than the store has."""
    if experiment.store.shard_images not in (None, plan.shard_images):
        raise ConfigError(
            f"store.shard_images: expected {plan.shard_images}, as in {experiment.store_path}, got "
            f"{experiment.store.shard_images}: leave it out"
        )


def known_failures(sources: Sources) -> Iterator[tuple[int, str]]:
    """Yield row and reason of each image that is known to fail before anything is decoded."""
    for row, source in enumerate(sources.rows):
        if source.names[0] in sources.unreadable:
            yield row, sources.unreadable[source.names[0]]


def warn(notes: Iterable[str]) -> None:
    """Log sentences as notes for the user."""
    for note in notes:
        _log.warning("note: %s", note)
