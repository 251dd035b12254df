"""The rows that every reader reads, made and kept with numpy alone: any environment can import this."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

QUICK = "BENCH_STORE_QUICK" in os.environ
"""Everything small: whether it runs, not how fast. In the environment, as some parts are processes of their own."""
PATCHES = 36 if QUICK else 576
SHAPES = {"raw": (PATCHES, 1024), "projected": (PATCHES, 4096)}
"""LLaVA-1.5 in 16 bit: 1.2 and 4.7 MB an image."""
IMAGES = 192
"""Three shards: more than any CPU cache, and small enough to be written in seconds."""
SHARD_IMAGES = 64
"""The store's default for images of 576 patches."""
BATCH = 32
_ONE = 0x3C00
"""Bits of 1.0 in float16."""

Rows = np.ndarray[Any, Any]


def row_bytes(name: str) -> int:
    """Bytes of one image."""
    return int(np.prod(SHAPES[name])) * np.dtype(np.float16).itemsize


def make_shards(name: str) -> Iterator[Rows]:
    """The rows shard by shard, always the same ones; nothing is compressed, so they need only be finite and varied."""
    rng = np.random.default_rng(0)
    for _ in range(0, IMAGES, SHARD_IMAGES):
        yield rng.integers(0, _ONE, (SHARD_IMAGES, *SHAPES[name]), np.uint16).view(np.float16)


def flat_file(folder: Path, name: str) -> Path:
    """Where the rows lie as one .npy file."""
    return folder / f"{name}.npy"


def write_flat(folder: Path, name: str) -> None:
    """The rows as one .npy file, on the disk when this returns."""
    path = flat_file(folder, name)
    whole = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(IMAGES, *SHAPES[name]))
    for number, rows in enumerate(make_shards(name)):
        whole[number * SHARD_IMAGES : (number + 1) * SHARD_IMAGES] = rows
    whole.flush()
    del whole
    sync(path)


def map_flat(folder: Path, name: str) -> Rows:
    """np.memmap of that file."""
    return np.load(flat_file(folder, name), mmap_mode="r")


def sync(path: Path) -> None:
    """Wait until a file is on the disk: only then its pages can be dropped."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def evict(folder: Path) -> None:
    """Drop every file below `folder` from the page cache; pages that are mapped stay, so close maps first."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
