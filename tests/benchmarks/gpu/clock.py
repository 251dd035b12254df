"""Seconds of runs on a device that works behind Python, and a limit to the time that a part may take."""

import signal
import statistics
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from stage2_prune.language.clock import seconds_after_work

Run = Callable[[], object]


class OutOfTime(Exception):
    """A part took longer than it may."""


@dataclass(frozen=True)
class Clock:
    """How time is told on a device."""

    device: torch.device

    def once(self, run: Run) -> float:
        """Seconds of a single run, from an idle device to an idle device."""
        begun = seconds_after_work(self.device)
        run()
        return seconds_after_work(self.device) - begun

    def median(self, run: Run, rounds: int, warm_up: int = 2) -> float:
        """Median seconds of some runs, after runs that do not count: kernels are loaded at the first."""
        for _ in range(warm_up):
            run()
        return statistics.median(self.once(run) for _ in range(rounds))


@contextmanager
def at_most(seconds: float) -> Generator[None, None, None]:
    """Raise OutOfTime within the block once so many seconds have passed."""

    def stop(_: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
