"""Runs that take turns, on a processor or an accelerator."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tests.benchmarks.store.timing import interleaved


@dataclass(frozen=True)
class Bench:
    """Where everything runs, and how time is told."""

    device: torch.device
    busy: bool = False
    """Seconds of this process on the processor, instead of those of the clock: for a machine that others use too."""

    def medians(self, runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        """Median seconds of each, after what the device was asked to do."""
        waiting = {name: (lambda run=run: self._until_done(run)) for name, run in runs.items()}
        return interleaved(waiting, rounds, clock=self._clock)

    def once(self, run: Callable[[], Any]) -> float:
        """Seconds of a single run."""
        begun = self._clock()
        self._until_done(run)
        return self._clock() - begun

    def _clock(self) -> float:
        return time.process_time() if self.busy else time.perf_counter()

    def _until_done(self, run: Callable[[], Any]) -> None:
        run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
