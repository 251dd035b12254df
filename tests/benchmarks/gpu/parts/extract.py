"""A whole extraction, and each of its legs alone: what it is bound by, and how much of that it reaches."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from stage1_extract.sources.images import decode_image
from stage1_extract.work.decoding import start_processes
from stage1_extract.work.open_encoder import OpenEncoder
from tests.benchmarks.gpu.making import photo
from tests.benchmarks.gpu.parts.stage1 import on_device, open_encoder, prepared
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows

DECODED = 256
"""Images that are decoded for the leg alone."""


@torch.no_grad()
def measure(place: Place, rows: Rows) -> None:
    """Measure the legs, then the whole."""
    opened = open_encoder(place, place.scale.tower_batch)
    legs = {
        "decode + preprocess on all cores": _decoding(place, opened),
        f"tower + projector, {place.scale.tower_batch} a call": _tower(place, opened),
        "durable writing": _writing(place, opened),
    }
    del opened
    place.release()
    for name, rate in legs.items():
        rows.add("extract", f"alone: {name}", rate, "images/s")
    begun = time.perf_counter()
    done = place.extract(overwrite=True)
    seconds = time.perf_counter() - begun
    rows.add("extract", f"{done['tower_images']} images, opening included", seconds, "s")
    rate = _steady_rate(place.experiment().store_path / "commits", place.scale.photos)
    if rate is None:
        rows.say("extract", "the rate is not measured: the store has fewer than three shards")
        rate = done["tower_images"] / seconds
    slowest = min(legs, key=lambda name: legs[name])
    rows.add("extract", "end to end, from the first shard's commit to the last one's", rate, "images/s")
    rows.add("extract", "share of the slowest leg alone", rate / legs[slowest])
    rows.say("extract", f"the slowest leg is {slowest}")


def _decoding(place: Place, opened: OpenEncoder) -> float:
    """Decode in processes where a worker does, otherwise in threads."""
    names = [photo(number) for number in range(min(DECODED, place.scale.photos))]
    processes = start_processes(place.experiment(), opened.encoder, opened.device)

    def work(name: str) -> object:
        data = (place.photos / name).read_bytes()
        if processes is not None:
            return processes.pixels(data)
        return opened.encoder.preprocess(decode_image(data, name, 10**8))

    if processes is not None:
        processes.wait()
    with ThreadPoolExecutor(os.cpu_count() if processes is None else len(processes)) as pool:
        rate = len(names) / place.clock.median(lambda: list(pool.map(work, names)), rounds=1, warm_up=1)
    if processes is not None:
        processes.end()
    return rate


def _tower(place: Place, opened: OpenEncoder) -> float:
    images, half = place.scale.tower_batch, opened.encoder.half
    pixels = on_device(place, prepared(place, opened, images))

    def bare() -> object:
        return half.projector(half.selection.of(half.tower(pixels, output_hidden_states=True).hidden_states))

    return images / place.clock.median(bare, place.scale.rounds)


def _writing(place: Place, opened: OpenEncoder) -> float:
    """Write the bytes of some images as one file for each array, as durably as a shard."""
    images = min(64, place.scale.photos)
    rows = opened.encode(prepared(place, opened, 1))
    blocks = {name: (row.tobytes() * images) for name, row in rows.items()}

    def write() -> None:
        for name, block in blocks.items():
            _write(place.folder / f"leg-{name}", block)

    try:
        return images / place.clock.median(write, rounds=3, warm_up=1)
    finally:
        for name in blocks:
            (place.folder / f"leg-{name}").unlink(missing_ok=True)


def _write(path: Path, block: bytes) -> None:
    with path.open("wb") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _steady_rate(commits: Path, images: int) -> float | None:
    """Return the images per second between the first commit and the last; None where there are too few."""
    times = sorted(file.stat().st_mtime for file in commits.glob("*.json"))
    if len(times) < 3 or times[-1] == times[0]:
        return None
    return images * (len(times) - 1) / len(times) / (times[-1] - times[0])
