"""Reading ahead: one thread reads the next batches while the caller computes on the current one."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Request = TypeVar("Request")
"""What names a piece of data to read, such as the rows of a batch."""
Result = TypeVar("Result")
"""What reading a request returns."""
Item = TypeVar("Item")


def prefetched(
    requests: Iterable[Request],
    read: Callable[[Request], Result],
    depth: int = 2,
    announce: Callable[[Request], None] = lambda _: None,
) -> Iterator[Result]:
    """Yield `read(request)` for each request, in order; a thread reads up to `depth` results ahead.

    What `read` raises is raised here, in place of its result. A consumer that stops early ends the thread.

    Args:
        requests: What is to be read, in order.
        read: Reads one request.
        depth: How many results may wait to be taken.
        announce: Called with each request before the request in front of it is read, so that the operating system can
            fetch data ahead.
    """
    ready: queue.Queue[tuple[Result] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for request in _announced(requests, announce):
                if stop.is_set():
                    return
                _put(ready, (read(request),), stop)
            _put(ready, None, stop)
        except BaseException as error:
            _put(ready, error, stop)

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
            del item  # otherwise this result stays in memory while the next is waited for
    finally:
        stop.set()
        thread.join()


def _put(ready: "queue.Queue[Item]", item: Item, stop: threading.Event) -> None:
    """Put an item into a queue as soon as there is room, unless the consumer has stopped."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return
        except queue.Full:
            continue


def _announced(requests: Iterable[Request], announce: Callable[[Request], None]) -> Iterator[Request]:
    """Yield each request after the request that follows it was announced."""
    previous: list[Request] = []  # empty or a single request: a request that was used up must not be kept in memory
    for request in requests:
        announce(request)
        yield from previous
        previous = [request]
    yield from previous
