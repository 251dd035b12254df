"""`make bench-store`: the store against np.memmap and other containers; exit status 1 if a demand is missed.

python -m tests.benchmarks.store                                      all of it
python -m tests.benchmarks.store reading cold                         some parts by name
python -m tests.benchmarks.store --markdown docs/store-benchmarks.md  all of it, kept as a page
python -m tests.benchmarks.store --quick                              whether all of it runs, in seconds; judges nothing
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if "--quick" in sys.argv:
    os.environ["BENCH_STORE_QUICK"] = "1"  # before the sizes are read

import torch  # noqa: F401  (before anything is measured)
from tqdm import tqdm

from tests.benchmarks.store import loaders, memory, reading, scale, writing
from tests.benchmarks.store.data import BATCH, IMAGES, PATCHES, QUICK, SHAPES, row_bytes, write_flat
from tests.benchmarks.store.lines import HEAD, Line, table
from tests.benchmarks.store.others import INDEX, from_other_environment
from tests.benchmarks.store.stores import write_store
from tests.benchmarks.store.timing import FEW_ROUNDS, ROUNDS

MINUTES = 1 if QUICK else 8
_COPIES_OF_RAW = 9
"""Containers: HDF5, safetensors, .pt, LMDB, litdata, MDS, webdataset; and what is written and removed on the way."""
OTHERS = Path(".bench-venv")
PACKAGES = ("numpy", "zarr", "torch", "h5py", "safetensors", "google-crc32c")


@dataclass
class Results:
    """What the parts have found so far."""

    lines: list[Line] = field(default_factory=list)
    containers: dict[str, float] = field(default_factory=dict)
    """Speed at 32 random raw rows relative to np.memmap[rows] of the same process."""
    failed: dict[str, str] = field(default_factory=dict)
    """Libraries that could not run, with the reason."""
    others_numpy: str = ""


def _reading(folder: Path, results: Results) -> None:
    for name in SHAPES:
        lines, took = reading.warm(folder, name)
        results.lines += lines
        speeds = {what: took[reading.INDEX] / seconds for what, seconds in took.items()}
        results.containers |= {f"{name}: {what}": speed for what, speed in speeds.items()}


def _writing(folder: Path, results: Results) -> None:
    for name in SHAPES:
        results.lines += writing.shards(folder, name)
    results.lines.append(writing.bytes_written(folder))


def _others(folder: Path, results: Results, environment: Path) -> None:
    found = from_other_environment(environment.absolute(), folder)
    results.containers |= {f"raw: {name}": ratio for name, ratio in found["ratios"].items()}
    results.failed, results.others_numpy = found["failed"], found["numpy"]


def _parts(environment: Path) -> dict[str, Callable[[Path, Results], None]]:
    return {
        "cold": lambda folder, results: results.lines.extend(reading.cold(folder)),  # first: before anything is mapped
        "reading": _reading,
        "writing": _writing,
        "loaders": lambda folder, results: results.lines.extend(loaders.loaders(folder)),
        "memory": lambda folder, results: results.lines.extend(memory.memory(folder)),
        "ids": lambda folder, results: results.lines.extend(scale.ids(folder)),
        "others": lambda folder, results: _others(folder, results, environment),
    }


def main() -> None:
    """Run the named parts, print the tables, say by the exit status whether every demand is met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.store",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = _parts(OTHERS)
    parser.add_argument("names", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--markdown", type=Path, help="Write the whole table to this file.")
    parser.add_argument("--json", action="store_true", help="Print JSON instead of tables.")
    parser.add_argument("--quick", action="store_true", help="Small images and few rounds, to see that it runs.")
    parser.add_argument("--folder", type=Path, help="Where the rows are written for the time being.")
    parser.add_argument("--others", type=Path, default=OTHERS, help="Virtual environment of the other libraries.")
    arguments = parser.parse_args()
    parts = _parts(arguments.others)
    if unknown := set(arguments.names) - parts.keys():
        parser.error(f"expected parts of {', '.join(parts)}; got {', '.join(sorted(unknown))}")
    if arguments.markdown and (arguments.names or arguments.quick):
        parser.error("--markdown keeps the whole table: name no parts with it, and no --quick")
    results = Results()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        _say_price(folder)
        for name in SHAPES:
            write_flat(folder, name)
        write_store(folder / "store")
        for name in (shown := tqdm(arguments.names or list(parts), unit="part")):
            shown.set_description(name)
            parts[name](folder, results)
    page = _page(results, time.perf_counter() - begun)
    print(_as_json(results) if arguments.json else page)
    if arguments.markdown:
        arguments.markdown.write_text(page)
    if QUICK:
        return
    missed = [line for line in results.lines if line.missed]
    for line in missed:
        print(f"missed: {line.check}: {' '.join(line.cells[2:4])}", file=sys.stderr)
    sys.exit(1 if missed else 0)


def _say_price(folder: Path) -> None:
    needed = IMAGES * (2 * sum(row_bytes(name) for name in SHAPES) + _COPIES_OF_RAW * row_bytes("raw"))
    free = shutil.disk_usage(folder).free
    print(
        f"the whole table takes about {MINUTES} minutes on 2 cores and {needed / 1e9:.1f} GB in {folder}, "
        f"{free / 1e9:.1f} GB are free",
        file=sys.stderr,
    )
    if free < needed:
        sys.exit(f"expected {needed:,} bytes free in {folder}, found {free:,}: make room, or name another --folder")


def _as_json(results: Results) -> str:
    lines = [asdict(line) | {"met": not line.missed} for line in results.lines]
    found = {"lines": lines, "containers": results.containers, "not_measured": results.failed, "versions": _versions()}
    return json.dumps(found, indent=1)


def _versions() -> dict[str, str]:
    return {package: version(package) for package in PACKAGES}


def _page(results: Results, seconds: float) -> str:
    versions = ", ".join(f"{package} {installed}" for package, installed in _versions().items())
    sections = [
        "# The store, measured",
        "Written by `make bench-store ARGS='--markdown docs/store-benchmarks.md'`. Only ratios count: both sides take turns in "
        "one process, in a random order, with fresh random rows for every call.",
        f"{time.strftime('%Y-%m-%d')}; {os.cpu_count()} CPUs; Python {platform.python_version()}, {versions}. "
        f"{IMAGES} images of {PATCHES}x1024 (`raw`) and {PATCHES}x4096 (`projected`) float16; {BATCH} rows a call; medians "
        f"of {ROUNDS} rounds, {FEW_ROUNDS} where a round is long; {seconds / 60:.0f} minutes in all.",
        "## Ratios to hold",
        "`x` is speed: 1 is as fast as what stands behind the `/`, more is faster. `verify` is the mode that the store was "
        "opened with, and what it came to in that row. A row without a demand is for information. Every row reads or writes this "
        "format with its checksums. A fresh array is made in memory that earlier ones gave back, once nobody holds them.",
        table(HEAD, [line.cells for line in results.lines]),
    ]
    if results.containers or results.failed:
        shown = sorted(results.containers.items(), key=lambda item: (item[0].split(":")[0] != "raw", -item[1]))
        failed = [[name, f"not measured: {reason}"] for name, reason in results.failed.items()]
        sections += [
            f"## {BATCH} random rows, in other containers too",
            f"Speed relative to `{INDEX}` in the same process, from the page cache, each in the fastest form that we know. "
            "`gather` is this store, opened with verify first-read unless it says otherwise. tensorstore, LMDB, litdata, MDS "
            f"and webdataset ran in an environment of their own (numpy {results.others_numpy or 'not asked for'}).",
            table(["reader", "speed"], [*([name, f"{speed:.2f} x"] for name, speed in shown), *failed]),
        ]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    main()
