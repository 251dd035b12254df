"""What a copy of a store is made of, whether it comes from a store or from a file that one was exported to."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.layout.fingerprint import without_paths
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.reading.reader import FeatureStore, ProjectorState

_log = logging.getLogger(__name__)


def _redacted(plan: Plan) -> Plan:
    """The plan without paths of the machine that made the store, which plans of earlier versions hold."""
    return plan.model_copy(update={"fingerprints": {n: without_paths(one) for n, one in plan.fingerprints.items()}})


@dataclass(frozen=True)
class Contents:
    """A store as one generation, without its past: what was committed of it."""

    plan: Plan
    ids: ImageIds
    projector: ProjectorState | None
    shards: tuple[int, ...]
    """Those of which every array is committed, ascending."""
    failures: Mapping[int, str]
    """Rows of those shards whose image could not be encoded for some array, with the reason."""
    read: Callable[[str, Sequence[int]], NDArray[Any]]
    """Ascending rows of one shard of an array, none of them failed, as (row, *shape) in storage dtype."""

    @classmethod
    def of(cls, store: FeatureStore) -> "Contents":
        """Of a store; what lacks an array, be it a shard or an image, is left out, and said."""
        shards = tuple(store.committed_shards)
        partly = {s for log in store.logs for s in log} - {*shards}
        if partly:
            _log.warning("note: %d shards lack an array, so they are left out", len(partly))
        whole = {*shards}
        failures = {row: why for row, why in store.failed().items() if row // store.plan.shard_images in whole}
        lacking = [row for row in failures if any(row not in store.failed([name]) for name in store.arrays)]
        if lacking:
            _log.warning(
                "note: %d images have some arrays and lack others, so they are left out; `drop` takes an array away",
                len(lacking),
            )
        return cls(_redacted(store.plan.flattened()), store.ids, store.projector, shards, failures, store.gather)

    def rows(self, shard: int) -> list[int]:
        """Rows of a shard that hold features."""
        return [row for row in self.plan.rows(shard) if row not in self.failures]

    @property
    def all_rows(self) -> list[int]:
        """Rows of all shards that hold features."""
        return [row for shard in self.shards for row in self.rows(shard)]

    def filled(self, name: str, shard: int) -> NDArray[Any]:
        """A shard of an array as (image, *shape) in storage dtype; images that failed hold fill."""
        spec, rows, there = self.plan.array(name), self.plan.rows(shard), self.rows(shard)
        values = np.full((len(rows), *spec.shape), spec.fill, spec.storage)
        values[[row - rows.start for row in there]] = self.read(name, there)
        return values
