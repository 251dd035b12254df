"""Turn image files into pixel values in threads, ahead of the tower."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

from configs.experiment import Experiment
from configs.processes.workers import usable_cores
from stage1_extract.encoding.family import Encoder, Pixels
from stage1_extract.errors import BadImage
from stage1_extract.sources import ImageRow, Sources
from stage1_extract.sources.images import content_id, decode_image
from store.layout.tensors import worker_devices
from store.log.commits import SUPERSEDED

Item = TypeVar("Item")
Result = TypeVar("Result")
Decoded = Pixels | BadImage
"""Pixel values of an image, or the reason why there are none."""


def decode(source: ImageRow, sources: Sources, encoder: Encoder, max_pixels: int) -> Decoded:
    """Read, check, decode and preprocess one image; return a BadImage, instead of raising it, where a step fails."""
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


THREADS_ON_CPU = 2
"""Decoding threads beside a tower on a CPU, which has the cores itself."""


def decode_threads(experiment: Experiment, device: torch.device) -> int:
    """Return `extract.decode_threads`, or what `auto` stands for.

    Beside a GPU every core decodes, shared among the workers of this machine: Pillow and numpy free the lock while they work.
    """
    asked = experiment.extract.decode_threads
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return THREADS_ON_CPU
    return max(THREADS_ON_CPU, usable_cores() // len(worker_devices(experiment.model.device)))


def lookahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Yield `work(item)` for each item, in order, with up to `depth` items under way in the pool."""
    source = iter(items)
    under_way = deque(pool.submit(work, item) for item in islice(source, depth))
    while under_way:
        result = under_way.popleft().result()
        for item in islice(source, 1):
            under_way.append(pool.submit(work, item))
        yield result
