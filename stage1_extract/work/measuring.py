"""Encode a sample of an extraction's images, to estimate how long all of them take and how much memory the device needs."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from configs.counted import counted
from configs.experiment import Experiment
from stage1_extract.errors import BadImage
from stage1_extract.sources import ImageRow, Sources
from stage1_extract.work.decoding import Decoded, decode, start_decoding
from stage1_extract.work.open_encoder import OpenEncoder
from store.files.disk import existing_folder
from store.layout.plan import Plan
from store.layout.tensors import worker_devices

T = TypeVar("T")
CALLS = 3
"""Calls of the tower that are timed."""
WRITTEN = 64_000_000
"""Bytes that are written to find out how fast the disk is."""


def measure(
    experiment: Experiment, sources: Sources, stored: Plan | None, images: int, row_bytes: int
) -> dict[str, Any]:
    """Measure the three legs of an extraction, each alone: decoding, the tower, and durable writing.

    Args:
        experiment: The config.
        sources: The images that are asked for, of which the first are encoded.
        stored: The plan of the store that is gone on with; None for a new store.
        images: Number of images that are to be encoded.
        row_bytes: Bytes of an image in all arrays.

    Returns:
        Images per second of each leg with all workers, the `slowest` leg, the `minutes` that all images take at its rate, the
        number of images in the `sample` (0 where none can be decoded), and the bytes of `device_memory` (None on a CPU).

    """
    devices = worker_devices(experiment.model.device)
    opened = OpenEncoder.load(experiment, devices[0], stored, len(sources.rows))
    workers = experiment.extract.workers or len(devices)
    asked = sources.rows[: CALLS * opened.batch]
    decoding, decoded = _timed_decoding(experiment, sources, opened, asked)
    pictures = [pixels for pixels in decoded if not isinstance(pixels, BadImage)]
    if not pictures:
        return {"sample": 0, "images_per_second": {}, "slowest": None, "minutes": None, "device_memory": None}
    opened.encode(pictures[: opened.batch])  # warms up
    encoding, _ = _timed(lambda: opened.encode(pictures))
    rates = {
        "decode": workers * len(decoded) / decoding,
        "tower": workers * len(pictures) / encoding,
        "disk": _bytes_per_second(experiment.store_path) / row_bytes,
    }
    slowest = min(rates, key=lambda leg: rates[leg])
    return {
        "sample": len(pictures),
        "images_per_second": {leg: round(rate, 2) for leg, rate in rates.items()},
        "slowest": slowest,
        "minutes": round(images / rates[slowest] / 60, 2),
        "device_memory": torch.cuda.max_memory_allocated(opened.device) if opened.device.type == "cuda" else None,
    }


def as_text(measured: dict[str, Any]) -> str:
    """Write the result of `measure` as a line of text."""
    if not measured["sample"]:
        return "nothing was measured: none of the first images can be decoded"
    rates = ", ".join(f"{leg} {rate:,.1f}" for leg, rate in measured["images_per_second"].items())
    memory = (
        ""
        if measured["device_memory"] is None
        else f"; {measured['device_memory'] / 1e9:.1f} GB of the device's memory"
    )
    return (
        f"measured on {counted(measured['sample'], 'image')}: {rates} images/s; about {measured['minutes']:.1f} minutes, "
        f"bound by {measured['slowest']}{memory}"
    )


def _timed_decoding(
    experiment: Experiment, sources: Sources, opened: OpenEncoder, asked: Sequence[ImageRow]
) -> tuple[float, list[Decoded]]:
    """Decode some images as a worker does, with processes that have started; return the seconds and the results."""
    encoder, limit = opened.encoder, experiment.extract.max_pixels
    threads, processes = start_decoding(experiment, encoder, opened.device)
    try:
        if processes is not None:
            processes.wait()
        with ThreadPoolExecutor(threads) as pool:
            return _timed(lambda: list(pool.map(lambda row: decode(row, sources, encoder, limit, processes), asked)))
    finally:
        if processes is not None:
            processes.end()


def _timed(run: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def _bytes_per_second(store: Path) -> float:
    """Measure durable writing on the disk that the store will lie on."""
    content = np.random.default_rng(0).bytes(WRITTEN)
    with tempfile.NamedTemporaryFile(dir=existing_folder(store.parent), prefix=".measure-") as file:
        begun = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - begun)
