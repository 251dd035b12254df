"""Turn image files into pixel values in threads or processes, ahead of the tower."""

import os
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
from stage1_extract.work.decoding_process import DecodingProcesses
from store.layout.tensors import worker_devices
from store.log.commits import SUPERSEDED

Item = TypeVar("Item")
Result = TypeVar("Result")
Decoded = Pixels | BadImage
"""Pixel values of an image, or the reason why there are none."""


def decode(
    source: ImageRow, sources: Sources, encoder: Encoder, max_pixels: int, processes: DecodingProcesses | None = None
) -> Decoded:
    """Read, check, decode and preprocess one image; return a BadImage, instead of raising it, where a step fails.

    What `processes` cannot do is done here, so that errors are the same with and without them.
    """
    if not source.names:
        return BadImage(SUPERSEDED, source.sha)
    name = source.names[0]
    try:
        data = sources.images.read(name)
        if sources.by_content and content_id(data) != source.sha:
            raise BadImage("changed_while_running", name)
        pixels = None if processes is None else processes.pixels(data)
        return encoder.preprocess(decode_image(data, name, max_pixels)) if pixels is None else pixels
    except BadImage as bad:
        return bad


THREADS_ON_CPU = 2
"""Decoding threads beside a tower on a CPU, which has the cores itself."""


FEW_CORES = 4
"""Cores of a worker up to which threads decode: Pillow and numpy free Python's lock for about two thirds of their time."""
SPARED_CORES = 2
"""Cores that decoding processes leave to what feeds the GPU, and to writing."""
MOST_PROCESSES = 16
"""Decoding processes of a worker at most: more would wait for the GPU."""


def decode_threads(experiment: Experiment, device: torch.device) -> int:
    """Return `extract.decode_threads`, or what `auto` stands for: beside a GPU every core of the worker decodes."""
    asked = experiment.extract.decode_threads
    if asked != "auto":
        return asked
    return max(THREADS_ON_CPU, _cores(experiment)) if device.type == "cuda" else THREADS_ON_CPU


def start_decoding(
    experiment: Experiment, encoder: Encoder, device: torch.device
) -> tuple[int, DecodingProcesses | None]:
    """Return how many threads decode, and the processes that do it for them; None where the threads do it themselves."""
    processes = start_processes(experiment, encoder, device)
    return (decode_threads(experiment, device), None) if processes is None else (len(processes), processes)


def start_processes(experiment: Experiment, encoder: Encoder, device: torch.device) -> DecodingProcesses | None:
    """Start processes that decode beside a GPU where `extract.decode_threads` is `auto`; None where threads decode.

    Threads decode where there are few cores, and where the encoder's preprocessing cannot be opened in another process.
    """
    cores, processor = _cores(experiment), encoder.processor_alone()
    automatic = experiment.extract.decode_threads == "auto" and device.type == "cuda"
    if not automatic or processor is None or cores <= FEW_CORES or not hasattr(os, "memfd_create"):
        return None
    return DecodingProcesses(processor, experiment.extract.max_pixels, min(cores - SPARED_CORES, MOST_PROCESSES))


def _cores(experiment: Experiment) -> int:
    """Return how many cores of this machine each of its workers has; a Ray actor does not know of those beside it."""
    section = experiment.extract
    if section.engine == "ray":
        return min(usable_cores(), FEW_CORES)
    of_config = section.workers if section.engine == "local" else None
    return max(1, usable_cores() // (of_config or len(worker_devices(experiment.model.device))))


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
