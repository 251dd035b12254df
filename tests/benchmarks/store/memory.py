"""Anonymous memory while 2.4 GB are streamed: a process of its own, so that nothing else is counted.

    python -m tests.benchmarks.store.memory STORE

Prints JSON: bytes beyond those before the stream, for each way of reading.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from store.reading.prefetch import prefetched
from store.reading.reader import FeatureStore
from tests.benchmarks.store.data import BATCH, IMAGES, QUICK, SHAPES, row_bytes
from tests.benchmarks.store.lines import Line
from tests.benchmarks.store.timing import random_rows

STREAM_BYTES = 240_000_000 if QUICK else 2_400_000_000
SLACK = 16e6
DEPTH = 2
_POLL_SECONDS = 0.002
NAME = "projected"
_BATCH_BYTES = BATCH * row_bytes(NAME)
BUFFERS = {"gather into one buffer": _BATCH_BYTES, "prefetched, fresh batches": (DEPTH + 2) * _BATCH_BYTES}
"""What each way holds by its own terms: a prefetch of depth 2 has two ready, one being read and one in use."""


def memory(folder: Path) -> list[Line]:
    """Both ways, each in a new process; every pass over the store uses fresh maps and verifies every row."""
    lines = []
    for way, buffers in BUFFERS.items():
        command = [sys.executable, "-m", "tests.benchmarks.store.memory", str(folder / "store"), way]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        most = (buffers + SLACK) / 1e6
        check = f"anonymous memory over a {STREAM_BYTES / 1e9:g} GB stream, {way}"
        lines.append(Line(check, "first-read, every row verified", json.loads(said.stdout) / 1e6, "MB", most=most))
    return lines


def _passes(path: Path) -> Iterator[tuple[FeatureStore, list[int]]]:
    """Batches of whole passes over the store, opened anew for each, until 2.4 GB are asked for."""
    for _ in range(-(-STREAM_BYTES // (IMAGES * row_bytes(NAME)))):
        store, order = FeatureStore.open(path), random_rows(IMAGES)
        for first in range(0, IMAGES, BATCH):
            yield store, order[first : first + BATCH]


def _into_one_buffer(path: Path) -> None:
    out = np.empty((BATCH, *SHAPES[NAME]), np.float16)
    for store, rows in _passes(path):
        store.gather(NAME, rows, out)


def _through_a_thread(path: Path) -> None:
    for _ in prefetched(_passes(path), lambda wanted: wanted[0].gather(NAME, wanted[1]), DEPTH):
        pass


WAYS: dict[str, Callable[[Path], None]] = dict(zip(BUFFERS, (_into_one_buffer, _through_a_thread), strict=True))


@contextmanager
def _peak(found: list[int]) -> Iterator[None]:
    """The largest RssAnon on the way, looked at every 2 ms, beyond the one before."""
    before, ended = _anonymous(), threading.Event()

    def watch() -> None:
        most = before
        while not ended.wait(_POLL_SECONDS):
            most = max(most, _anonymous())
        found.append(max(most, _anonymous()) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _anonymous() -> int:
    """RssAnon in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    peak: list[int] = []
    FeatureStore.open(Path(sys.argv[1]))  # what opening a store loads once is no part of the stream
    with _peak(peak):
        WAYS[sys.argv[2]](Path(sys.argv[1]))
    print(json.dumps(peak[0]))
