"""A worker below an engine: it finds everything in the store that the engine has prepared."""

from collections.abc import Callable

import torch

from configs.experiment import Experiment
from stage1_extract.sources import stored_sources
from stage1_extract.work.worker import OpenEncoder, Worker, use_threads_of
from store.layout.fingerprint import require_equal, spelt_as
from store.layout.plan import read_plan
from store.log.progress import committed_failures
from store.reading.opening import stored_ids
from store.writing.growth import left_to_derive
from store.writing.writer import StoreWriter


class Joined:
    """A worker with its model loaded."""

    def __init__(self, experiment: Experiment, label: str, device: str) -> None:
        """Raises FingerprintMismatch (exit 4) on a machine that would make other features than the store's."""
        self.plan = read_plan(experiment.store_path)
        # Since this worker was queued the store may have grown.
        experiment = experiment.with_arrays(spec.name for spec in self.plan.arrays)
        self.experiment, self.label = experiment, label
        self._failures = committed_failures(experiment.store_path, self.plan)
        self.ids = stored_ids(experiment.store_path, self.plan)
        self.sources = stored_sources(experiment, self.plan, self.ids)
        use_threads_of(self.plan)
        self.opened = OpenEncoder.load(experiment, device)
        prints = spelt_as(self.opened.fingerprints(), self.plan.fingerprints)
        self._leave = left_to_derive(self.plan, prints)
        for name, found in prints.items():
            if name in self._leave:
                continue
            wanted = self.plan.fingerprints[name].model_dump()
            require_equal(f"the fingerprint of {name} in {label}", wanted, found.model_dump(), "use equal machines")

    def extract(
        self, shards: list[int], allowed: int, tick: Callable[[int], object] = lambda images: None,
        begin: Callable[[int], object] = lambda shard: None,
    ) -> None:  # fmt: skip
        """Encode those of `shards` that are nobody else's; see Worker for `tick` and `begin`."""
        stall = self.experiment.extract.stall_seconds
        path = self.experiment.store_path
        with StoreWriter.open(path, self.plan, self.ids, None, "joined", stall, leave=self._leave) as writer:
            worker = Worker(self.experiment, writer, self.sources, self.opened, self.label, tick, begin)
            worker.failures = self._failures
            worker.extract(shards, allowed)


def in_turn(shards: list[int], index: int, workers: int) -> list[int]:
    """All shards in the order in which one of several workers tries them: its own share first, then what others left."""
    return [shard for turn in range(workers) for shard in shards[(index + turn) % workers :: workers]]


def devices(experiment: Experiment) -> list[str]:
    """The devices of this machine that workers are spread over."""
    name = experiment.model.device
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if name in ("auto", "cuda") and count else [name]
