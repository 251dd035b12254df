"""What a copy of a store is made from: the contents of a store, or of a file that a store was exported to."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.counted import counted
from store.layout.fingerprint import without_paths
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.reading.projector_state import ProjectorState
from store.reading.reader import FeatureStore

_log = logging.getLogger(__name__)


def _redacted(plan: Plan) -> Plan:
    """Return the plan without paths of the machine that made the store; plans of earlier versions hold such paths."""
    fingerprints = {name: without_paths(fingerprint) for name, fingerprint in plan.fingerprints.items()}
    return plan.model_copy(update={"fingerprints": fingerprints})


@dataclass(frozen=True)
class Contents:
    """What a store has committed, as a single generation without the earlier ones."""

    plan: Plan
    ids: ImageIds
    projector: ProjectorState | None
    shards: tuple[int, ...]
    """Shards of which every array is committed, in ascending order."""
    failures: Mapping[int, str]
    """Rows of `shards` whose image could not be encoded for at least one array, each with the reason."""
    read: Callable[[str, Sequence[int]], NDArray[Any]]
    """Reads rows of an array, given by its name, as (row, *shape) in storage dtype. The rows ascend, lie in one shard, and
    have not failed."""

    @classmethod
    def of(cls, store: FeatureStore) -> "Contents":
        """Take the contents of a store; leaves out shards and images that lack an array, and warns of them."""
        shards = tuple(store.committed_shards)
        partial = {shard for log in store.logs for shard in log} - {*shards}
        if partial:
            _log.warning("note: left out, because an array is missing: %s", counted(len(partial), "shard"))
        complete = {*shards}
        failures = {row: why for row, why in store.failed().items() if row // store.plan.shard_images in complete}
        lacking = [row for row in failures if any(row not in store.failed([name]) for name in store.arrays)]
        if lacking:
            _log.warning(
                "note: left out, because some arrays lack them (`drop` these arrays to keep the images): %s",
                counted(len(lacking), "image"),
            )
        return cls(_redacted(store.plan.flattened()), store.ids, store.projector, shards, failures, store.gather)

    def rows(self, shard: int) -> list[int]:
        """List the rows of a shard that hold features."""
        return [row for row in self.plan.rows(shard) if row not in self.failures]

    @property
    def all_rows(self) -> list[int]:
        """Rows of all shards that hold features."""
        return [row for shard in self.shards for row in self.rows(shard)]

    def filled(self, name: str, shard: int) -> NDArray[Any]:
        """Read a shard of an array as (image, *shape) in storage dtype; images that failed hold fill."""
        spec, rows, good = self.plan.array(name), self.plan.rows(shard), self.rows(shard)
        values = np.full((len(rows), *spec.shape), spec.fill, spec.storage)
        values[[row - rows.start for row in good]] = self.read(name, good)
        return values
