"""Progress of long work: a bar on a terminal; in a log, where a bar would be a mess, a line a minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from types import TracebackType
from typing import Generic, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_SECONDS = 60.0
"""Seconds between two lines in a log, and before the first: shorter work logs nothing."""


class ProgressBar(Generic[T]):
    """How far a piece of work is, shown on stderr: as a bar on a terminal, otherwise as a line a minute.

    Iterate over it, or enter it as a context and call `update`:

        for image in ProgressBar(images, "encode", unit="images"): ...
        with ProgressBar(what="encode", total=5000, unit="images") as bar: bar.update(8)
    """

    def __init__(
        self,
        items: Iterable[T] = (),
        what: str = "",
        total: int | None = None,
        *,
        unit: str = "items",
        initial: int = 0,
        leave: bool = True,
        hidden: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to show the work.

        Args:
            items: What is iterated over; its length is the total where `total` is None.
            what: The work's name, a verb or a noun: the line begins with it.
            total: Units of the whole work; None where it is unknown.
            unit: What is counted, in the plural.
            initial: Units that an earlier run did; they count as done but not into the rate.
            leave: False removes a finished bar from the terminal, for work inside other work.
            hidden: True shows nothing, for work whose progress somebody else shows.
            clock: Seconds that only grow; tests have one of their own.

        """
        self._items, self._what, self._unit, self._clock = items, what, unit, clock
        self._total = (length_hint(items) or None) if total is None else total
        self._initial, self.done = initial, initial
        self._notes: dict[str, str] = {}
        self._begun = self._logged = clock()
        on_terminal = sys.stderr.isatty()
        self._logs = not on_terminal and not hidden
        self._bar = tqdm(
            desc=what, total=self._total, unit=f" {unit}", initial=initial, leave=leave, disable=hidden or not on_terminal
        )  # fmt: skip

    def __iter__(self) -> Iterator[T]:
        """Yield the items; each counts as done when the next one is asked for."""
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "ProgressBar[T]":
        """Return this; the context's end closes the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, or end the log with a line if it had one before."""
        self._bar.close()
        if self._logs and self._logged > self._begun and error is None:
            print(self._line(f"in {_duration(self._clock() - self._begun)}"), file=sys.stderr, flush=True)

    def update(self, count: int = 1) -> None:
        """Count units that are done now."""
        self.done += count
        self._bar.update(count)
        now = self._clock()
        if self._logs and now - self._logged >= LOG_SECONDS:
            self._logged = now
            print(self._line(*self._pace(now - self._begun)), file=sys.stderr, flush=True)

    def note(self, **values: str) -> None:
        """Show values beside the count from the next update on, such as `loss="0.123"`."""
        self._notes |= values
        self._bar.set_postfix_str(", ".join(self._noted()), refresh=False)

    def _line(self, *parts: str) -> str:
        of = "" if self._total is None else f" of {self._total:,}"
        return f"{self._what}: " + ", ".join([f"{self.done:,}{of} {self._unit}", *parts, *self._noted()])

    def _noted(self) -> list[str]:
        return [f"{name} {value}" for name, value in self._notes.items()]

    def _pace(self, seconds: float) -> Iterator[str]:
        """The mean rate of this run, and the time left at that rate."""
        rate = (self.done - self._initial) / seconds
        if rate <= 0:
            return
        yield _rate(rate)
        if self._total is not None:
            yield f"{_duration((self._total - self.done) / rate)} left"


def say(line: str) -> None:
    """Print a line on stderr, above any bar that is shown there."""
    tqdm.write(line, file=sys.stderr)


def _rate(per_second: float) -> str:
    """A rate in the unit in which it is not below 1: `3.1/s`, `12.0/min` or `0.4/h`."""
    for seconds, unit in ((1, "s"), (60, "min")):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def _duration(seconds: float) -> str:
    """A duration in its two largest units at most: `40 s`, `20 min`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count)
