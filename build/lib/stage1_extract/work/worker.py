"""One worker: it claims shards, decodes in threads, encodes, commits behind, and gives up what it does not finish."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.encoding.family import Encoder, Pixels, checkpoint_config
from stage1_extract.encoding.fingerprint import environment, fingerprints
from stage1_extract.errors import BadImage, DeviceTooSmall, TooManyFailures
from stage1_extract.find_family import find_family
from stage1_extract.sources import Source, Sources
from stage1_extract.sources.images import content_id, decode_image
from store.errors import LeaseLost
from store.layout.environment import use_threads
from store.layout.fingerprint import Fingerprint
from store.layout.ids import printable
from store.layout.plan import Plan
from store.layout.tensors import pick_device, to_storage
from store.log.commits import SUPERSEDED
from store.log.leases import Lease
from store.writing.retry import Kept
from store.writing.writer import StoreWriter

One = TypeVar("One")
Other = TypeVar("Other")
Decoded = Pixels | BadImage
Arrays = dict[str, NDArray[Any]]
_log = logging.getLogger(__name__)
_SHOWN = 20


class OpenEncoder:
    """A vision half on its device, and the batch that it may be given there."""

    @classmethod
    def load(cls, experiment: Experiment, device_name: str) -> "OpenEncoder":
        """From the experiment's checkpoint."""
        config, device = checkpoint_config(experiment.model), pick_device(device_name)
        return cls(experiment, config, find_family(config).open(experiment, config, device), device)

    def __init__(self, experiment: Experiment, config: Any, encoder: Encoder, device: torch.device) -> None:
        """On a device whose bits depend on the batch, images are encoded one at a time."""
        self.experiment, self.config, self.encoder, self.device = experiment, config, encoder, device
        wanted = experiment.extract.tower_batch
        self.invariant = batch_invariant(self.encoder, wanted)
        self.batch = wanted if self.invariant or not experiment.extract.exact_batch else 1
        if not self.invariant:
            _log.warning(
                "note: on this device the tower's features depend on its batch; %s",
                "images are encoded one at a time, extract.exact_batch: false would trade exactness for speed"
                if self.batch == 1
                else f"encoded {self.batch} at a time as asked for, parity may be only close",
            )

    @property
    def alone_as_in_company(self) -> bool:
        """Whether an image has the same features whichever others it is encoded with."""
        return self.invariant or self.batch == 1

    def fingerprints(self) -> dict[str, Fingerprint]:
        """By array. Where no batch changes a bit, the batch is no part of it."""
        recorded = 1 if self.invariant else self.batch
        numeric = environment(self.device, recorded, self.alone_as_in_company)
        return fingerprints(self.experiment, self.config, self.encoder, numeric)

    def side_costs(self) -> list[str]:
        """What arrays beside the features cost in time, measured on noise: a sentence, or none where there are none."""
        ratios = self.encoder.side_cost(noise(self.encoder, self.batch))
        if not ratios:
            return []
        return [
            f"with the side arrays a forward of the tower takes {median(ratios):.2f} times as long (measured on noise), between "
            f"{min(ratios):.2f} and {max(ratios):.2f} in {len(ratios)} runs"
        ]

    def encode(self, batch: Sequence[Pixels]) -> Arrays:
        """The arrays of some images in storage dtype; where the device is too small, in smaller batches from now on."""
        done: list[Arrays] = []
        waiting = list(batch)
        while waiting:
            now = waiting[: self.batch]
            try:
                found = self.encoder.encode(now)
            except torch.OutOfMemoryError:
                self._halve()
                continue
            done.append({name: to_storage(values) for name, values in found.items()})
            waiting = waiting[len(now) :]
        return {name: np.concatenate([one[name] for one in done]) for name in done[0]}

    def _halve(self) -> None:
        if self.batch == 1 or (not self.invariant and not self.experiment.extract.exact_batch):
            raise DeviceTooSmall(
                f"expected memory for {self.batch} images at a time on {self.device}, there is too little: free the device, "
                "or lower --tower-batch"
            )
        self.batch //= 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("note: %s is out of memory, going on with %d images at a time", self.device, self.batch)


@torch.no_grad()
def batch_invariant(encoder: Encoder, tower_batch: int) -> bool:
    """Whether an image's features are the same bits alone and in batches up to this one, tried on noise.

    If they are not, the full model (which sees images in other batches) cannot be equal bit for bit, only close.
    """
    if tower_batch == 1:
        return True
    pixels = noise(encoder, tower_batch)
    alone = encoder.encode(pixels[:1])
    sizes = {tower_batch >> halvings for halvings in range(tower_batch.bit_length() - 1)}
    together = [encoder.encode(pixels[:size]) for size in sorted(sizes)]
    return all(np.array_equal(to_storage(one[name][:1]), to_storage(alone[name])) for one in together for name in alone)


def noise(encoder: Encoder, images: int) -> list[Pixels]:
    """Pixel values of images that look like nothing."""
    drawn = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    return [encoder.preprocess(Image.fromarray(one)) for one in drawn]


class Worker:
    """Encodes shards of an open store."""

    def __init__(
        self, experiment: Experiment, writer: StoreWriter, sources: Sources, opened: OpenEncoder, label: str,
        tick: Callable[[int], object] = lambda images: None, begin: Callable[[int], object] = lambda shard: None,
    ) -> None:  # fmt: skip
        """`label` names the worker in the log; `tick` is told of images that are done, `begin` of the shard at hand."""
        self.experiment, self.writer, self.sources, self.opened = experiment, writer, sources, opened
        self.label, self.tick, self.begin = label, tick, begin
        self.failures: dict[int, str] = {}
        self._leases: deque[Lease] = deque()
        self._kept: dict[int, Kept] = {}

    def extract(self, shards: Iterable[int], allowed: int) -> None:
        """Encode and commit those of `shards` that are nobody else's; what is not finished is given up.

        Raises TooManyFailures (exit 3) when more than `allowed` images cannot be encoded.
        """
        plan = self.writer.plan
        with self._decoding(shards) as decoded, ThreadPoolExecutor(1, "commit") as committer:
            pending: Future[Any] | None = None
            for first in decoded:
                lease = self._leases[0]
                self.begin(lease.shard)
                began = time.time()
                kept = self._kept.pop(lease.shard)
                rows = [row for row in plan.rows(lease.shard) if row not in kept.rows]
                self.tick(len(kept.rows))
                arrays, failures = self._encode_shard(
                    lease.shard, rows, kept, islice(chain([first], decoded), len(rows))
                )
                self.failures |= failures
                require_few(self.failures, allowed, self.sources)
                if pending is not None:
                    pending.result()
                telemetry = {
                    "began": began,
                    "ended": time.time(),
                    "tower_images": len(rows) - len(failures),
                    "worker": self.label,
                }
                self._leases.popleft()
                pending = committer.submit(self._commit, lease, arrays, failures, telemetry)
            if pending is not None:
                pending.result()

    @contextmanager
    def _decoding(self, shards: Iterable[int]) -> Generator[Iterator[Decoded], None, None]:
        """Decoded images of claimed shards, ahead of the tower; whatever happens, no lease is left."""
        threads = self.experiment.extract.decode_threads
        pool = ThreadPoolExecutor(threads, "decode")
        try:
            yield lookahead(pool, self._decode, self._claimed_rows(shards), 2 * self.opened.batch + threads)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for lease in self._leases:
                lease.release()

    def _claimed_rows(self, shards: Iterable[int]) -> Iterator[int]:
        for shard in shards:
            lease = self.writer.claim(shard)
            if lease is not None:
                kept = self.writer.kept(shard) if self.opened.alone_as_in_company else Kept()
                self._kept[shard] = kept
                self._leases.append(lease)
                yield from (row for row in self.writer.plan.rows(shard) if row not in kept.rows)

    def _encode_shard(
        self, shard: int, rows: Sequence[int], kept: Kept, decoded: Iterable[Decoded]
    ) -> tuple[Arrays, dict[int, str]]:
        """Arrays of a shard with `rows` encoded and all others as they were kept, and failures among `rows`.

        Batches are cut inside the shard, in row order: where a run began changes nothing.
        """
        of_shard = self.writer.plan.rows(shard)
        arrays = {s.name: np.full((len(of_shard), *s.shape), s.fill, s.storage) for s in self.writer.plan.arrays}
        arrays |= kept.arrays
        failures: dict[int, str] = {}
        waiting: list[tuple[int, Pixels]] = []

        def flush() -> None:
            places = [place for place, _ in waiting]
            for name, values in self.opened.encode([pixels for _, pixels in waiting]).items():
                arrays[name][places] = values
            waiting.clear()
            for held in self._leases:
                held.beat()

        for row, one in zip(rows, decoded, strict=True):
            if isinstance(one, BadImage):
                failures[row] = one.reason
            else:
                waiting.append((row - of_shard.start, one))
            if len(waiting) == self.opened.batch:
                flush()
            self.tick(1)
        if waiting:
            flush()
        return arrays, failures

    def _commit(self, lease: Lease, arrays: Arrays, failures: dict[int, str], telemetry: dict[str, Any]) -> None:
        try:
            self.writer.commit_shard(lease.shard, arrays, failures, telemetry, lease)
        except LeaseLost as lost:
            _log.warning("note: %s", lost)

    def _decode(self, row: int) -> Decoded:
        return decode(self.sources.rows[row], self.sources, self.opened.encoder, self.experiment.extract.max_pixels)


def decode(source: Source, sources: Sources, encoder: Encoder, max_pixels: int) -> Decoded:
    """Pixel values of one image, or why there are none."""
    if not source.names:
        return BadImage(SUPERSEDED, source.sha)
    name = source.names[0]
    try:
        data = sources.images.read(name)
        if sources.by_content and content_id(data) != source.sha:
            raise BadImage("changed_while_running", name)
        return encoder.preprocess(decode_image(data, name, max_pixels))
    except BadImage as bad:
        return bad


def use_threads_of(plan: Plan) -> None:
    """Encode as the towers' work in a store was encoded, whatever this machine or engine has to offer."""
    for name, made in plan.fingerprints.items():
        if name not in plan.derived:
            use_threads(made.numeric)
            return


def lookahead(
    pool: ThreadPoolExecutor, work: Callable[[One], Other], items: Iterable[One], depth: int
) -> Iterator[Other]:
    """`work(item)` for each item, in order, with up to `depth` of them under way in the pool."""
    source = iter(items)
    under_way = deque(pool.submit(work, item) for item in islice(source, depth))
    while under_way:
        done = under_way.popleft().result()
        for item in islice(source, 1):
            under_way.append(pool.submit(work, item))
        yield done


def allowed_failures(max_failures: str, images: int) -> int:
    """How many images may fail: `5`, or `1%` of all."""
    if max_failures.endswith("%"):
        return int(Fraction(max_failures[:-1]) * images / 100)  # not floats: 29 % of 100 is 29
    return int(max_failures)


def require_few(failures: dict[int, str], allowed: int, sources: Sources) -> None:
    """Raise TooManyFailures (exit 3), listing them, when more images failed than are tolerated."""
    failures = {row: why for row, why in failures.items() if why != SUPERSEDED}
    if len(failures) <= allowed:
        return
    listed = "".join(
        f"\n  {', '.join(map(printable, sources.rows[row].names))}: {why}"
        for row, why in list(failures.items())[:_SHOWN]
    )
    more = f"\n  … and {len(failures) - _SHOWN} more" if len(failures) > _SHOWN else ""
    raise TooManyFailures(
        f"{len(failures)} images cannot be encoded, {allowed} are tolerated; correct them, or raise --max-failures; shards "
        f"that are committed stay:{listed}{more}"
    )
