"""A worker that an engine started: it joins a store that another process has prepared."""

from collections.abc import Callable

from configs.experiment import Experiment
from stage1_extract.sources import stored_sources
from stage1_extract.work.open_encoder import OpenEncoder
from stage1_extract.work.worker import Worker
from store.layout.fingerprint import require_equal, spelt_as
from store.layout.plan import read_plan
from store.log.progress import committed_failures
from store.reading.opening import stored_ids
from store.writing.growth import left_to_derive
from store.writing.writer import StoreWriter


class Joined:
    """A worker with its model loaded, which follows the plan of the store instead of making one."""

    def __init__(self, experiment: Experiment, label: str, device: str) -> None:
        """Read the plan and load the model.

        Raises FingerprintMismatch (exit 4) on a machine that would make other features than the store's.
        """
        self.plan = read_plan(experiment.store_path)
        # Since this worker was queued the store may have grown.
        experiment = experiment.with_arrays(spec.name for spec in self.plan.arrays)
        self.experiment, self.label = experiment, label
        self._failures = committed_failures(experiment.store_path, self.plan)
        self.ids = stored_ids(experiment.store_path, self.plan)
        self.sources = stored_sources(experiment, self.plan, self.ids)
        self.opened = OpenEncoder.load(experiment, device, self.plan)
        prints = spelt_as(self.opened.fingerprints(), self.plan.fingerprints)
        self._underived = left_to_derive(self.plan, prints)
        for name, fingerprint in prints.items():
            if name in self._underived:
                continue
            wanted = self.plan.fingerprints[name].model_dump()
            require_equal(
                f"the fingerprint of {name} in {label}", wanted, fingerprint.model_dump(), "use equal machines"
            )

    def extract(
        self, shards: list[int], allowed: int, tick: Callable[[int], object] = lambda images: None,
        begin: Callable[[int], object] = lambda shard: None,
    ) -> None:  # fmt: skip
        """Encode each of `shards` that no other worker holds or has done; see Worker for `tick` and `begin`."""
        stall_seconds = self.experiment.extract.stall_seconds
        path = self.experiment.store_path
        with StoreWriter.open(
            path, self.plan, self.ids, None, "joined", stall_seconds, leave=self._underived
        ) as writer:
            worker = Worker(self.experiment, writer, self.sources, self.opened, self.label, tick, begin)
            worker.failures = self._failures
            worker.extract(shards, allowed)


def in_turn(shards: list[int], index: int, workers: int) -> list[int]:
    """List all shards in the order in which worker `index` of `workers` tries them: its own share first, then the others'."""
    return [shard for turn in range(workers) for shard in shards[(index + turn) % workers :: workers]]
