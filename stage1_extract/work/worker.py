"""One worker of an extraction: it claims shards, decodes ahead of the tower, encodes, and commits in the background."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from configs.experiment import Experiment
from stage1_extract.encoding.family import Pixels
from stage1_extract.errors import BadImage
from stage1_extract.sources import Sources
from stage1_extract.work.decoding import Decoded, decode, lookahead, start_decoding
from stage1_extract.work.failures import require_few
from stage1_extract.work.open_encoder import OpenEncoder
from stage1_extract.work.shard_arrays import ShardArrays, copy_stream
from stage1_extract.work.waits import Waits
from store.errors import LeaseLost
from store.log.leases import Lease
from store.writing.retry import KeptRows
from store.writing.writer import StoreWriter

_log = logging.getLogger(__name__)


class Worker:
    """Encodes shards of an open store; a shard that it claimed and did not finish is released for others."""

    def __init__(
        self, experiment: Experiment, writer: StoreWriter, sources: Sources, opened: OpenEncoder, label: str,
        tick: Callable[[int], object] = lambda images: None, begin: Callable[[int], object] = lambda shard: None,
        waiting: Callable[[str], object] = lambda what: None,
    ) -> None:  # fmt: skip
        """Prepare a worker.

        Args:
            experiment: Settings of the extraction.
            writer: The open store.
            sources: One source per row of the store.
            opened: The encoder.
            label: Names the worker in the commit log.
            tick: Called with the number of images that were finished since the last call.
            begin: Called with the number of each shard when its encoding begins.
            waiting: Called now and then with what the worker waits for most, such as `decode 62 %`.

        """
        self.experiment, self.writer, self.sources, self.opened = experiment, writer, sources, opened
        self.label, self.tick, self.begin = label, tick, begin
        self.failures: dict[int, str] = {}
        """Reasons of all failures so far, by row."""
        self._leases: deque[Lease] = deque()
        self._kept: dict[int, KeptRows] = {}
        self._stream = copy_stream(opened.device)
        self._waits = Waits(waiting)

    def extract(self, shards: Iterable[int], allowed: int) -> None:
        """Encode and commit each of `shards` that no other worker holds or has done.

        While one shard is written the next is encoded, so that memory holds the arrays of two shards.

        Raises TooManyFailures (exit 3) when more than `allowed` images cannot be encoded.
        """
        plan = self.writer.plan
        with self._decoding(shards) as decoded, ThreadPoolExecutor(1, "commit") as committer:
            pending: tuple[ShardArrays, Future[Any]] | None = None
            for first in decoded:
                lease = self._leases[0]
                self.begin(lease.shard)
                began = time.time()
                kept = self._kept.pop(lease.shard)
                rows = [row for row in plan.rows(lease.shard) if row not in kept.rows]
                self.tick(len(kept.rows))
                of_shard = islice(chain([first], decoded), len(rows))
                arrays, failures = self._encode_shard(lease.shard, rows, kept, of_shard)
                self.failures |= failures
                require_few(self.failures, allowed, self.sources)
                if pending is not None:
                    self._wait_for(*pending)
                telemetry = {
                    "began": began,
                    "ended": time.time(),
                    "tower_images": len(rows) - len(failures),
                    "worker": self.label,
                    "waited": self._waits.taken(),
                }
                self._leases.popleft()
                pending = arrays, committer.submit(self._commit, lease, arrays, failures, telemetry)
            if pending is not None:
                self._wait_for(*pending)

    def _wait_for(self, arrays: ShardArrays, committing: Future[Any]) -> None:
        """Wait until a shard is committed; what a GPU still has to do for it counts as the tower's time, not the disk's."""
        with self._waits.waiting_for("tower"):
            arrays.wait()
        with self._waits.waiting_for("disk"):
            committing.result()

    @contextmanager
    def _decoding(self, shards: Iterable[int]) -> Generator[Iterator[Decoded], None, None]:
        """Yield the decoded images of claimed shards, ahead of the tower; release every lease that is left at the end."""
        experiment, sources, encoder = self.experiment, self.sources, self.opened.encoder
        threads, processes = start_decoding(experiment, encoder, self.opened.device)
        pool = ThreadPoolExecutor(threads, "decode")

        def decoded(row: int) -> Decoded:
            return decode(sources.rows[row], sources, encoder, experiment.extract.max_pixels, processes)

        try:
            depth = 2 * self.opened.batch + threads
            images = lookahead(pool, decoded, self._claimed_rows(shards), depth)
            yield self._waits.timed("decode", images)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if processes is not None:
                processes.end()
            for lease in self._leases:
                lease.release()

    def _claimed_rows(self, shards: Iterable[int]) -> Iterator[int]:
        """Claim one shard after the other and yield the rows that must be encoded."""
        for shard in shards:
            lease = self.writer.claim(shard)
            if lease is not None:
                kept = self.writer.kept(shard) if self.opened.call.exact else KeptRows()
                self._kept[shard] = kept
                self._leases.append(lease)
                yield from (row for row in self.writer.plan.rows(shard) if row not in kept.rows)

    def _encode_shard(
        self, shard: int, rows: Sequence[int], kept: KeptRows, decoded: Iterable[Decoded]
    ) -> tuple[ShardArrays, dict[int, str]]:
        """Return the arrays of a whole shard, to which a GPU may still be copying, and the failures among `rows`.

        Rows outside `rows` are those of `kept`. Batches are cut inside the shard, in row order, so that the bytes do not
        depend on where a run began.
        """
        of_shard = self.writer.plan.rows(shard)
        arrays = ShardArrays(self.writer.plan.arrays, len(of_shard), self.opened.device, self._stream, kept.arrays)
        failures: dict[int, str] = {}
        waiting: list[tuple[int, Pixels]] = []

        def flush() -> None:
            with self._waits.waiting_for("tower"):
                launched = self.opened.launch([pixels for _, pixels in waiting])
                arrays.put(launched, [position for position, _ in waiting])
            waiting.clear()
            for lease in self._leases:
                lease.beat()

        for row, image in zip(rows, decoded, strict=True):
            if isinstance(image, BadImage):
                failures[row] = image.reason
            else:
                waiting.append((row - of_shard.start, image))
            if len(waiting) == self.opened.batch:
                flush()
            self.tick(1)
        if waiting:
            flush()
        return arrays, failures

    def _commit(
        self, lease: Lease, arrays: ShardArrays, failures: dict[int, str], telemetry: dict[str, Any]
    ) -> None:  # fmt: skip
        try:
            self.writer.commit_shard(lease.shard, arrays.finished(), failures, telemetry, lease)
        except LeaseLost as lost:  # another worker took the shard over and commits it
            _log.warning("note: %s", lost)
