"""Processes on this machine, one per device by default. A worker that dies or hangs is replaced, and said."""

import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess
from typing import NoReturn

from configs.cli import run_to_exit_code
from configs.experiment import Experiment
from stage1_extract.engines.joined import Joined, devices, in_turn
from stage1_extract.errors import WorkerFailed
from store.leases import Holder, disk_time, holders
from store.writer import StoreWriter

RETRIES = 2
"""How often a shard is tried again after the worker on it died."""
SHUTDOWN_SECONDS = 8.0
"""How long workers may take to give up their shards when the run is stopped."""
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
        raise WorkerFailed(3, "; ".join(crew.given_up))


@dataclass
class _Crew:
    experiment: Experiment
    writer: StoreWriter
    allowed: int
    processes: dict[int, SpawnProcess] = field(default_factory=dict)
    started: dict[int, float] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter[int])
    """By shard."""
    given_up: list[str] = field(default_factory=list)
    lost: set[int] = field(default_factory=set[int])
    """Shards that are tried no more."""

    def start(self) -> None:
        for index in range(count_workers(self.experiment)):
            self._start(index)

    def _start(self, index: int) -> None:
        here = devices(self.experiment)
        workers = count_workers(self.experiment)
        shards = in_turn([s for s in self.writer.missing_shards() if s not in self.lost], index, workers)
        if not shards:
            return
        arguments = (self.experiment, f"local {index}", here[index % len(here)], shards, self.allowed)
        process = multiprocessing.get_context("spawn").Process(target=_main, args=arguments, daemon=True)
        process.start()
        self.processes[index], self.started[index] = process, disk_time(self.writer.path)

    def alive(self) -> bool:
        return bool(self.processes)

    def replace_dead(self) -> None:
        """Collect who is done; an error ends the run, a death is followed by another try."""
        for index, process in list(self.processes.items()):
            code = process.exitcode
            if code is None:
                continue
            del self.processes[index]
            if code > 0 and code != 1:
                raise WorkerFailed(code, f"worker {index} ended with exit code {code}, its message is above")
            if code:
                self._mourn(index, process, code)
                self._start(index)

    def _mourn(self, index: int, process: BaseProcess, code: int) -> None:
        how = f"was killed by signal {-code}" if code < 0 else "broke, its traceback is above"
        shards = [shard for shard, (holder, _) in self._leases().items() if self._is(holder, process)]
        if not shards:
            raise WorkerFailed(3, f"worker {index} {how} before it took a shard")
        for shard in shards[:1]:  # those behind it were only waiting
            self.deaths[shard] += 1
            _log.warning("note: worker %d %s at shard %d", index, how, shard)
            if self.deaths[shard] > RETRIES:
                self.lost.add(shard)
                self.given_up.append(f"shard {shard} was given up: a worker {how} on it {self.deaths[shard]} times")

    def replace_hung(self) -> None:
        """Kill workers that make no progress; they are replaced like dead ones."""
        now, leases = disk_time(self.writer.path), self._leases()
        for index, process in self.processes.items():
            beats = [beat for holder, beat in leases.values() if self._is(holder, process)]
            if now - max([self.started[index], *beats]) > self.experiment.extract.stall_seconds:
                _log.warning("note: worker %d made no progress in %.0f s", index, self.experiment.extract.stall_seconds)
                process.kill()
                process.join()

    @staticmethod
    def _is(holder: Holder, process: BaseProcess) -> bool:
        return (holder.host, holder.pid) == (socket.gethostname(), process.pid)

    def _leases(self) -> dict[int, tuple[Holder, float]]:
        return holders(self.writer.path)

    def stop(self) -> None:
        """No worker outlives the run: they give up their shards, and those that do not are killed."""
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def _main(experiment: Experiment, label: str, device: str, shards: list[int], allowed: int) -> NoReturn:
    """A spawned worker: the exit codes of a command; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(run_to_exit_code(lambda: Joined(experiment, label, device).extract(shards, allowed)))
