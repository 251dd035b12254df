"""Reading ahead: one thread gathers the next batches while the current one is computed on."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Wanted = TypeVar("Wanted")
Read = TypeVar("Read")


def prefetched(
    wanted: Iterable[Wanted],
    read: Callable[[Wanted], Read],
    depth: int = 2,
    announce: Callable[[Wanted], None] = lambda _: None,
) -> Iterator[Read]:
    """`read(w) for w in wanted`, up to `depth` results ahead, in order; each `w` is announced one before it is read.

    What `read` raises is raised here, at its place; a consumer that stops early ends the thread.
    """
    ready: queue.Queue[tuple[Read] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[Read] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for one in _announced(wanted, announce):
                if stop.is_set():
                    return
                put((read(one),))
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item[0]
            del item  # or it is held while the next one is waited for
    finally:
        stop.set()
        thread.join()


def _announced(wanted: Iterable[Wanted], announce: Callable[[Wanted], None]) -> Iterator[Wanted]:
    """Each one after its successor was announced."""
    before: list[Wanted] = []  # one or none; what was used up must not be held any longer
    for one in wanted:
        announce(one)
        yield from before
        before = [one]
    yield from before
