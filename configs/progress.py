"""Progress of long work: a bar on a terminal; in a log, where a bar would be a mess, a line every minute."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

import click
from tqdm import tqdm

from configs.files.atomic import write_atomically

T = TypeVar("T")
LOG_SECONDS = 60.0
"""Seconds between two lines in a log, and before the first line: shorter work logs nothing."""
PROGRESS = "progress.json"
"""Name of the file that says how far the work is, in the folder that the work writes into."""
FILE_SECONDS = 5.0
"""Seconds between two writings of that file, `progress.json`."""
_said: set[str] = set()
"""What was said once outside a command; a command remembers in click's context what it said."""


class ProgressBar(Generic[T]):
    """Shows on stderr how far a piece of work is: as a bar on a terminal, otherwise as a line every minute.

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
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to show the work.

        Args:
            items: The items to iterate over; their number is the total where `total` is None.
            what: The work's name, a verb or a noun: the line begins with it.
            total: Units of the whole work; None where their number is unknown.
            unit: The name of the units, in the plural.
            initial: Units that an earlier run did; they count as done, and the rate leaves them out.
            leave: False removes a finished bar from the terminal, for work inside other work.
            hidden: True shows nothing, for work whose progress another bar shows.
            file: Where other processes may read, as JSON, how far the work is: the units that are done, their total, the rate
                of this run in units per second, and the time of writing in seconds since 1970. The file is removed when the
                work has ended without an error; it stays after a Ctrl-C or a kill.
            clock: Returns seconds that only grow; tests pass a clock of their own.

        """
        self._items, self._what, self._unit, self._clock = items, what, unit, clock
        self._total = (length_hint(items) or None) if total is None else total
        self._initial, self.done = initial, initial
        self._notes: dict[str, str] = {}
        self._begun = self._logged = self._written = clock()
        self._file = file
        on_terminal = sys.stderr.isatty()
        self._logs = not on_terminal and not hidden
        self._bar = tqdm(
            desc=what, total=self._total, unit=f" {unit}", initial=initial, leave=leave, disable=hidden or not on_terminal
        )  # fmt: skip

    def __iter__(self) -> Iterator[T]:
        """Yield the items; an item counts as done when the next item is asked for."""
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> "ProgressBar[T]":
        """Return this bar; the end of the context closes it."""
        self._write_file()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, or write a last line to a log that has had a line before."""
        self._bar.close()
        if self._file is not None and error is None:
            self._file.unlink(missing_ok=True)
        if self._logs and self._logged > self._begun and error is None:
            print(self._line(f"in {_duration(self._clock() - self._begun)}"), file=sys.stderr, flush=True)

    def update(self, count: int = 1) -> None:
        """Count `count` more units as done."""
        self.done += count
        self._bar.update(count)
        now = self._clock()
        if now - self._written >= FILE_SECONDS:
            self._write_file()
        if self._logs and now - self._logged >= LOG_SECONDS:
            self._logged = now
            print(self._line(*self._pace(now - self._begun)), file=sys.stderr, flush=True)

    def note(self, **values: str) -> None:
        """Show values such as `loss="0.123"` beside the count, from the next update on; a name's `_` is shown as a space."""
        self._notes |= values
        self._bar.set_postfix_str(", ".join(self._noted()), refresh=False)

    def _write_file(self) -> None:
        if self._file is None:
            return
        self._written = self._clock()
        seconds = self._written - self._begun
        rate = (self.done - self._initial) / seconds if seconds > 0 else None
        content = {"done": self.done, "total": self._total, "per_second": rate or None, "written": time.time()}
        write_atomically(self._file, json.dumps(content) + "\n")

    def _line(self, *parts: str) -> str:
        of_total = "" if self._total is None else f" of {self._total:,}"
        return f"{self._what}: " + ", ".join([f"{self.done:,}{of_total} {self._unit}", *parts, *self._noted()])

    def _noted(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {value}" for name, value in self._notes.items()]

    def _pace(self, seconds: float) -> Iterator[str]:
        """Yield the mean rate of this run, and the time left at that rate."""
        rate = (self.done - self._initial) / seconds
        if rate <= 0:
            return
        yield rate_in_words(rate)
        if self._total is not None:
            yield f"{_duration((self._total - self.done) / rate)} left"


def say(line: str) -> None:
    """Print a line on stderr, above the bar if a bar is shown there."""
    tqdm.write(line, file=sys.stderr)


def say_once(line: str, about: str | None = None) -> None:
    """Print a line as `say` does, unless this command has said it before.

    Args:
        line: the line.
        about: what the line is about, if one such line is enough; default: the line itself.
    """
    context = click.get_current_context(silent=True)
    said = _said if context is None else context.meta.setdefault(__name__, set[str]())
    if (about or line) not in said:
        said.add(about or line)
        say(line)


def rate_in_words(per_second: float) -> str:
    """Write a rate per second, minute or hour, whichever first makes it at least 1: `3.1/s`, `12.0/min` or `0.4/h`."""
    for seconds, unit in ((1, "s"), (60, "min")):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def _duration(seconds: float) -> str:
    """Write a duration in at most its two largest units: `40 s`, `20 min`, `3 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{count} {unit}" for count, unit in ((hours, "h"), (minutes, "min")) if count)
