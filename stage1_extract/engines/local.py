"""Worker processes on this machine, one per device by default. A worker that dies or hangs is replaced, with a note."""

import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

from configs.cli import run_to_exit_code
from configs.experiment import Experiment
from configs.processes.workers import begin_worker, require_parent, stop_workers
from stage1_extract.engines.joined import Joined, in_turn
from stage1_extract.errors import WorkerFailed
from store.layout.tensors import worker_devices
from store.log.leases import Lease
from store.writing.writer import StoreWriter

RETRIES = 2
"""How often a shard is tried again after the worker on it died."""
SHUTDOWN_SECONDS = 5.0
"""How long workers may take to give up their shards when the run is stopped."""
LOADING_SECONDS = 1800.0
"""How long a worker may take to load its model and to take its first shard."""
POLL_SECONDS = 0.2
_log = logging.getLogger(__name__)


def count_workers(experiment: Experiment) -> int:
    """Return the number of worker processes: `extract.workers`, or one per device where it is not set."""
    return experiment.extract.workers or len(worker_devices(experiment.model.device))


def run(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None]) -> None:
    """Let worker processes encode every missing shard.

    Args:
        experiment: Settings of the extraction.
        writer: The open store.
        allowed: How many images may fail.
        look: Called several times a second, to show progress.

    Raises:
        WorkerFailed: A worker met an error (its exit code), or workers died three times on one shard (exit 3).

    """
    crew = _Crew(experiment, writer, allowed)
    try:
        crew.start()
        while crew.alive():
            look()
            crew.replace_hung()
            crew.replace_dead()
            time.sleep(POLL_SECONDS)
    finally:
        crew.stop()
    if crew.given_up:
        raise WorkerFailed(3, "; ".join(crew.given_up.values()))


@dataclass
class _Member:
    """A worker process, and the progress that it reports."""

    process: SpawnProcess
    progress: Any
    """Memory shared with the worker: the shard at hand (-1 before the first), and the number of images done."""
    seen: int = -1
    """Number of images done when the worker last made progress."""
    since: float = field(default_factory=time.monotonic)
    """Monotonic time, in seconds, at which that number was first seen."""

    @property
    def shard(self) -> int:
        """Number of the shard that the worker is encoding; -1 before its first."""
        return self.progress[0]

    def idle_seconds(self) -> float:
        """Return for how long the worker has made no progress."""
        if self.progress[1] != self.seen:
            self.seen, self.since = self.progress[1], time.monotonic()
        return time.monotonic() - self.since


@dataclass
class _Crew:
    """All worker processes of a run, and the shards on which workers died."""

    experiment: Experiment
    writer: StoreWriter
    allowed: int
    members: dict[int, _Member] = field(default_factory=dict)
    """Running workers by their index."""
    deaths: Counter[int] = field(default_factory=Counter[int])
    """How many workers died on each shard."""
    given_up: dict[int, str] = field(default_factory=dict)
    """Shards that are not tried any more, with the reason."""
    blocked: list[Lease] = field(default_factory=list[Lease])
    """Leases of shards that were given up."""

    def start(self) -> None:
        for index in range(count_workers(self.experiment)):
            self._start(index)

    def _start(self, index: int) -> None:
        devices = worker_devices(self.experiment.model.device)
        left = [shard for shard in self.writer.missing_shards() if shard not in self.given_up]
        shards = in_turn(left, index, count_workers(self.experiment))
        if not shards:
            return
        context = multiprocessing.get_context("spawn")
        progress = context.Array("q", [-1, 0])
        arguments = (self.experiment, f"local {index}", devices[index % len(devices)], shards, self.allowed, progress)
        process = context.Process(target=_main, args=arguments, daemon=True)
        process.start()
        self.members[index] = _Member(process, progress)

    def alive(self) -> bool:
        return bool(self.members)

    def replace_dead(self) -> None:
        """Remove workers that ended: exit code 0 means done, 1 or a signal a death, any other code ends the run."""
        for index, member in list(self.members.items()):
            code = member.process.exitcode
            if code is None:
                continue
            del self.members[index]
            if code > 1:
                raise WorkerFailed(code, f"worker {index} ended with exit code {code}; its message is above")
            if code:
                self._count_death(index, member.shard, code)
                self._start(index)

    def _count_death(self, index: int, shard: int, code: int) -> None:
        """Count a death on its shard, and give the shard up after too many; raise WorkerFailed for a death before any shard."""
        cause, advice = (f"was killed by signal {-code}", "") if code < 0 else ("failed", "; its traceback is above")
        if shard < 0:
            raise WorkerFailed(3, f"worker {index} {cause} before it took a shard{advice}")
        self.deaths[shard] += 1
        _log.warning("note: worker %d %s at shard %d%s", index, cause, shard, advice)
        if self.deaths[shard] > RETRIES:  # true again if a second worker was on the shard as it was given up
            reason = f"shard {shard} was given up: a worker {cause} on it {self.deaths[shard]} times"
            self.given_up.setdefault(shard, reason)
            self._block(shard)

    def _block(self, shard: int) -> None:
        """Hold a shard's lease, so that no worker that still has the shard in its list dies on it too."""
        lease = self.writer.claim(shard)
        if lease is not None:
            self.blocked.append(lease)

    def replace_hung(self) -> None:
        """Kill workers that make no progress; `replace_dead` replaces them."""
        for lease in self.blocked:
            lease.beat()
        for index, member in self.members.items():
            idle = member.idle_seconds()
            if idle > (self.experiment.extract.stall_seconds if member.shard >= 0 else LOADING_SECONDS):
                _log.warning("note: worker %d made no progress in %.0f s", index, idle)
                member.process.kill()
                member.process.join()

    def stop(self) -> None:
        """End all workers, which release their shards, and release the shards that were given up."""
        for lease in self.blocked:
            lease.release()
        stop_workers((member.process for member in self.members.values()), SHUTDOWN_SECONDS)


def _main(experiment: Experiment, label: str, device: str, shards: list[int], allowed: int, progress: Any) -> NoReturn:
    """Run a spawned worker; the process ends with the exit code that a command would have."""
    begin_worker()

    def begin(shard: int) -> None:
        progress[0] = shard

    def tick(images: int) -> None:
        require_parent()
        progress[1] += images

    sys.exit(run_to_exit_code(lambda: Joined(experiment, label, device).extract(shards, allowed, tick, begin)))
