"""What a worker waits for: images to be decoded, the tower, or the disk."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
TELL_SECONDS = 2.0
"""Seconds between two messages about what is waited for."""


class Waits:
    """Clocks for the places at which a worker waits."""

    def __init__(self, tell: Callable[[str], object], clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the clocks; `tell` is called now and then with the largest share, such as `decode 62 %`."""
        self._tell, self._clock = tell, clock
        self._seconds: dict[str, float] = {}
        self._recent: dict[str, float] = {}
        self._told = clock()

    @contextmanager
    def waiting_for(self, what: str) -> Generator[None, None, None]:
        """Count the time inside the block as waiting for `what`."""
        begun = self._clock()
        try:
            yield
        finally:
            self._add(what, begun)

    def timed(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the time until each comes as waiting for `what`."""
        source = iter(items)
        while True:
            begun = self._clock()
            try:
                item = next(source)
            except StopIteration:
                return
            self._add(what, begun)
            yield item

    def taken(self) -> dict[str, float]:
        """Return the seconds that were waited for each thing since the last call, and begin again."""
        taken, self._seconds = {what: round(seconds, 3) for what, seconds in self._seconds.items()}, {}
        return taken

    def _add(self, what: str, begun: float) -> None:
        now = self._clock()
        for counted in (self._seconds, self._recent):
            counted[what] = counted.get(what, 0.0) + now - begun
        if now - self._told >= TELL_SECONDS:
            most = max(self._recent, key=lambda name: self._recent[name])
            self._tell(f"{most} {min(1.0, self._recent[most] / (now - self._told)):.0%}")
            self._told, self._recent = now, {}
