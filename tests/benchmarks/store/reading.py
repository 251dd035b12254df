"""Reading 32 random images, from the page cache and from the disk."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from safetensors import safe_open
from safetensors.numpy import save_file

from store.reading.reader import FEATURES, FeatureStore
from tests.benchmarks.store.data import BATCH, IMAGES, QUICK, SHAPES, evict, make_shards, map_flat, row_bytes, sync
from tests.benchmarks.store.lines import Line
from tests.benchmarks.store.timing import (
    FEW_ROUNDS,
    Reader,
    fastest,
    interleaved_readers,
    random_rows,
)

GATHER, TAKE = "gather(out=)", "np.take(memmap, mode=clip, out=)"
FRESH, INDEX = "gather, fresh array", "np.memmap[rows]"
WARM = "first-read, all rows read before"
_FETCHED_SHARE = 0.9
"""A cold read fetches at least so much of its bytes from the disk."""


def warm(folder: Path, name: str) -> tuple[list[Line], dict[str, float]]:
    """The demands of one array, and seconds of every reader."""
    out = np.empty((BATCH, *SHAPES[name]), np.float16)
    store = FeatureStore.open(folder / "store")
    for row in range(IMAGES):
        store.gather(name, [row])  # from here on its checksums are verified
    never = FeatureStore.open(folder / "store", verify="never")
    always = FeatureStore.open(folder / "store", verify="always")
    positional = FeatureStore.open(folder / "store", access="preadv")
    flat = map_flat(folder, name)
    form, plain = _plain_zarr(folder, name, out)
    readers: dict[str, Reader] = {
        TAKE: lambda rows: np.take(flat, rows, axis=0, out=out, mode="clip"),
        INDEX: lambda rows: flat[rows],
        GATHER: lambda rows: store.gather(name, rows, out),
        FRESH: lambda rows: store.gather(name, rows),
        f"{GATHER}, verify never": lambda rows: never.gather(name, rows, out),
        f"{GATHER}, verify always": lambda rows: always.gather(name, rows, out),
        f"{GATHER}, access preadv": lambda rows: positional.gather(name, rows, out),
        form: plain,
    }
    if name == "raw":
        readers |= _containers(folder, out)
    for read in readers.values():
        _require_right(read, flat, out)
    took = interleaved_readers(readers)
    return [
        Line(f"{name}: {GATHER} / {TAKE}", WARM, took[TAKE] / took[GATHER], least=0.85),
        Line(f"{name}: {FRESH} / {INDEX}", WARM, took[INDEX] / took[FRESH], least=0.95),
        Line(f"{name}: {GATHER} / {form}", WARM, took[form] / took[GATHER], least=4),
    ], took


def _require_right(read: Reader, flat: np.ndarray[Any, Any], out: np.ndarray[Any, Any]) -> None:
    """A reader that is fast because it reads something else is none."""
    rows = random_rows()
    out[:] = 0
    got = read(rows)
    if not np.array_equal(np.asarray(out if got is None else got), flat[rows]):
        raise AssertionError("a reader of the benchmark returned other rows than it was asked for")


def _plain_zarr(folder: Path, name: str, out: np.ndarray[Any, Any]) -> tuple[str, Reader]:
    """Zarr's own pipeline in its fastest form on the installed version: `oindex` is the slowest on 3.1.6."""
    array: Any = zarr.open_group(folder / "store" / FEATURES, mode="r")[name]
    forms: dict[str, Reader] = {
        "oindex": lambda rows: array.oindex[rows],
        "np.stack of single rows": lambda rows: np.stack([array[row] for row in rows]),
        "single rows into out": _each_into(out, lambda row: array[row]),
    }
    form = fastest(forms)
    return f"plain zarr {zarr.__version__}, {form}", forms[form]


def _each_into(out: np.ndarray[Any, Any], one: Callable[[int], Any]) -> Reader:
    def read(rows: list[int]) -> None:
        for place, row in enumerate(rows):
            out[place] = one(row)

    return read


def _containers(folder: Path, out: np.ndarray[Any, Any]) -> dict[str, Reader]:
    """Files of the same raw rows that people use instead, each read in its fastest form; open files stay open."""
    tensors = folder / "pt"
    tensors.mkdir(exist_ok=True)
    keyed, first = {}, 0
    with h5py.File(folder / "raw.h5", "w") as file:
        dataset = file.create_dataset("raw", (IMAGES, *SHAPES["raw"]), np.float16)
        for rows in make_shards("raw"):
            dataset[first : first + len(rows)] = rows
            for place, row in enumerate(rows):
                torch.save(torch.from_numpy(row.copy()), tensors / f"{first + place}.pt")
            keyed[str(first)] = rows
            first += len(rows)
    save_file({"raw": np.concatenate(list(keyed.values()))}, folder / "raw.safetensors")
    hdf5 = h5py.File(folder / "raw.h5", "r")["raw"]
    sliced = safe_open(folder / "raw.safetensors", "numpy").get_slice("raw")

    def read_direct(rows: list[int]) -> None:
        for place, row in enumerate(rows):
            hdf5.read_direct(out, np.s_[row], np.s_[place])

    return {
        "h5py contiguous, read_direct": read_direct,
        "safetensors, get_slice": _each_into(out, lambda row: sliced[row : row + 1][0]),
        "one .pt an image, torch.load": _each_into(out, lambda row: torch.load(tensors / f"{row}.pt").numpy()),
        "one .pt an image, torch.load(mmap=True)": _each_into(
            out, lambda row: torch.load(tensors / f"{row}.pt", mmap=True).numpy()
        ),
    }


def cold(folder: Path) -> list[Line]:
    """Projected rows from the disk: `will_need` announces them, then `gather` verifies and copies."""
    out = np.empty((BATCH, *SHAPES["projected"]), np.float16)
    for path in (folder / "store").rglob("*"):
        if path.is_file():
            sync(path)

    def memmap() -> Reader:
        flat = map_flat(folder, "projected")
        return lambda rows: np.take(flat, rows, axis=0, out=out, mode="clip")

    def announced(**how: Any) -> Callable[[], Reader]:
        def opened() -> Reader:
            store = FeatureStore.open(folder / "store", **how)

            def read(rows: list[int]) -> None:
                store.will_need("projected", rows)
                store.gather("projected", rows, out)

            return read

        return opened

    def unannounced() -> Reader:
        store = FeatureStore.open(folder / "store")
        return lambda rows: store.gather("projected", rows, out)

    took = _cold_seconds(
        folder,
        {
            TAKE: memmap,
            "will_need + gather": announced(),
            "will_need + gather, preadv": announced(access="preadv"),
            GATHER: unannounced,
        },
    )
    first = "first-read, every row verified"
    return [
        Line("projected, cold: will_need + gather(out=) / memmap", first, took[TAKE] / took["will_need + gather"], least=1.8),
        Line(
            "projected, cold: the same with access=preadv / memmap", first, took[TAKE] / took["will_need + gather, preadv"]
        ),
        Line("projected, cold: gather(out=) unannounced / memmap", first, took[TAKE] / took[GATHER]),
    ]  # fmt: skip


def _cold_seconds(folder: Path, openings: dict[str, Callable[[], Reader]]) -> dict[str, float]:
    """Median seconds; every turn opens anew, as pages that are mapped cannot be dropped, and checks the disk was read."""
    seconds: dict[str, list[float]] = {name: [] for name in openings}
    shares: list[float] = []
    rng = np.random.default_rng(2)
    for _ in range(FEW_ROUNDS):
        for name in rng.permutation(list(openings)).tolist():
            gc.collect()
            evict(folder)
            read, rows, before = openings[name](), random_rows(), _fetched()
            begun = time.perf_counter()
            read(rows)
            seconds[name].append(time.perf_counter() - begun)
            shares.append((_fetched() - before) / (BATCH * row_bytes("projected")))
            del read
    if min(shares) < _FETCHED_SHARE and not QUICK:
        sys.exit(f"a cold read found {1 - min(shares):.0%} of its bytes in memory: name a --folder that is on a disk")
    return {name: statistics.median(values) for name, values in seconds.items()}


def _fetched() -> int:
    """Bytes that this process had fetched from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock * 512
