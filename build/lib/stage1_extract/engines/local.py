"""Processes on this machine, one per device by default. A worker that dies or hangs is replaced, and said."""

import logging
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

from configs.cli import run_to_exit_code, stop_on_sigterm
from configs.errors import Interrupted
from configs.experiment import Experiment
from stage1_extract.engines.joined import Joined, devices, in_turn
from stage1_extract.errors import WorkerFailed
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
    """Processes: as many as the config says, otherwise one per device."""
    return experiment.extract.workers or len(devices(experiment))


def run(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None]) -> None:
    """Let workers encode every missing shard; `look` is called as time passes.

    Raises WorkerFailed: with the exit code of a worker that met an error, or 3 for a shard on which workers died three
    times.
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
    """A process, and what it tells of its work."""

    process: SpawnProcess
    told: Any
    """Shared: the shard at hand (-1 before the first), the images done."""
    seen: int = -1
    since: float = field(default_factory=time.monotonic)

    @property
    def shard(self) -> int:
        return self.told[0]

    def idle_seconds(self) -> float:
        """How long it has made no progress."""
        if self.told[1] != self.seen:
            self.seen, self.since = self.told[1], time.monotonic()
        return time.monotonic() - self.since


@dataclass
class _Crew:
    experiment: Experiment
    writer: StoreWriter
    allowed: int
    members: dict[int, _Member] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter[int])
    """By shard."""
    given_up: dict[int, str] = field(default_factory=dict)
    """Shards that are tried no more, with the reason."""
    blocked: list[Lease] = field(default_factory=list[Lease])
    """Their leases."""

    def start(self) -> None:
        for index in range(count_workers(self.experiment)):
            self._start(index)

    def _start(self, index: int) -> None:
        here = devices(self.experiment)
        left = [shard for shard in self.writer.missing_shards() if shard not in self.given_up]
        shards = in_turn(left, index, count_workers(self.experiment))
        if not shards:
            return
        context = multiprocessing.get_context("spawn")
        told = context.Array("q", [-1, 0])
        arguments = (self.experiment, f"local {index}", here[index % len(here)], shards, self.allowed, told)
        process = context.Process(target=_main, args=arguments, daemon=True)
        process.start()
        self.members[index] = _Member(process, told)

    def alive(self) -> bool:
        return bool(self.members)

    def replace_dead(self) -> None:
        """Collect who is done; an error ends the run, a death is followed by another try."""
        for index, member in list(self.members.items()):
            code = member.process.exitcode
            if code is None:
                continue
            del self.members[index]
            if code > 1:
                raise WorkerFailed(code, f"worker {index} ended with exit code {code}, its message is above")
            if code:
                self._mourn(index, member.shard, code)
                self._start(index)

    def _mourn(self, index: int, shard: int, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else "broke, its traceback is above"
        if shard < 0:
            raise WorkerFailed(3, f"worker {index} {how} before it took a shard")
        self.deaths[shard] += 1
        _log.warning("note: worker %d %s at shard %d", index, how, shard)
        if self.deaths[shard] > RETRIES:  # again, when another worker was on it already as it was given up
            times = f"a worker {how} on it {RETRIES + 1} times"
            self.given_up.setdefault(shard, f"shard {shard} was given up: {times}")
            self._block(shard)

    def _block(self, shard: int) -> None:
        """Hold a shard's lease, so that no worker that still has it in its list dies on it too."""
        lease = self.writer.claim(shard)
        if lease is not None:
            self.blocked.append(lease)

    def replace_hung(self) -> None:
        """Kill workers that make no progress; they are replaced like dead ones."""
        for lease in self.blocked:
            lease.beat()
        for index, member in self.members.items():
            idle = member.idle_seconds()
            if idle > (self.experiment.extract.stall_seconds if member.shard >= 0 else LOADING_SECONDS):
                _log.warning("note: worker %d made no progress in %.0f s", index, idle)
                member.process.kill()
                member.process.join()

    def stop(self) -> None:
        """No worker outlives the run: they give up their shards, and those that do not are killed."""
        for lease in self.blocked:
            lease.release()
        for member in self.members.values():
            member.process.terminate()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for member in self.members.values():
            member.process.join(max(0.0, deadline - time.monotonic()))
            if member.process.is_alive():
                member.process.kill()
                member.process.join()


def _main(experiment: Experiment, label: str, device: str, shards: list[int], allowed: int, told: Any) -> NoReturn:
    """A spawned worker: the exit codes of a command; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_on_sigterm()

    def begin(shard: int) -> None:
        told[0] = shard

    def tick(images: int) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise Interrupted("the process that started this worker is gone; run the same command again to go on")
        told[1] += images

    sys.exit(run_to_exit_code(lambda: Joined(experiment, label, device).extract(shards, allowed, tick, begin)))
