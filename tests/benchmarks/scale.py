"""How a store grows: plan, ids, log and files of so many images, without their terabytes.

    python -m tests.benchmarks.scale                              10,000, 665,298 and 10,000,000 images
    python -m tests.benchmarks.scale 665298                       LLaVA-1.5's training mix alone
    python -m tests.benchmarks.scale --markdown docs/scale.md     all of it, kept as a page
    python -m tests.benchmarks.scale --folder /dev/shm            in memory: a million sparse files take a disk long

Shard files are sparse: of the right size, holding nothing. Everything else is real, and written by the project's own code.
Exit status 1 if a demand is missed.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from store.care.status import status
from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, default_shard_images
from store.layout.shard import FileRecord
from store.log.commits import COMPACTED, FOLDER, CommitRecord, compact, publish, read_commits
from store.reading.reader import FEATURES, FeatureStore
from store.writing.writer import StoreWriter
from tests.benchmarks.store.lines import table
from tests.benchmarks.store.stores import SPECS, image_name, no_fsync

SIZES = (10_000, 665_298, 10_000_000)
LOOKUPS = 2_000
ROUNDS = 5
TOUCHED_SHARDS = 3_000
"""Shards that a row is read from: more than stay open."""
MOST_OPEN_SECONDS, OPEN_AT = 0.100, 665_298
MOST_LOOKUP_SECONDS = 50e-6
PACKAGES = ("numpy", "zarr", "pydantic")
# What a run took where docs/scale.md was written, with room.
_SECONDS_PER_IMAGE = 90e-6
_DISK_PER_IMAGE = 700
"""Bytes: ids, records, and the folders of sparse files."""
_MEMORY_PER_IMAGE = 900
_MS, _US, _MB, _TB = 1e-3, 1e-6, 1e6, 1e12


@dataclass(frozen=True)
class Row:
    """One line of the table: how to say a value that was measured, and what it grows with."""

    what: str
    key: str
    scale: float = 1
    unit: str = ""
    grows: str = ""

    def cell(self, found: dict[str, float]) -> str:
        value = found[self.key] / self.scale
        return f"{value:,.0f} {self.unit}".strip() if value >= 100 or not self.unit else f"{value:.2g} {self.unit}"


ROWS = [
    Row("shards (64 images each)", "shards", grows="images / 64"),
    Row("features, if they were there", "feature_bytes", _TB, "TB", "images"),
    Row("plan and ids made, files hashed before", "plan_seconds", 1, "s", "images"),
    Row("memory at its peak meanwhile, names included", "plan_memory", _MB, "MB", "images"),
    Row("store created: ids, metadata, manifest", "create_seconds", 1, "s", "images"),
    Row("ids on disk", "ids_bytes", _MB, "MB", "images, names"),
    Row("commit log, compacted", "log_bytes", _MB, "MB", "shards"),
    Row("files, one record per file", "files_single", grows="shards x (arrays + 1)"),
    Row("files, compacted", "files_compacted", grows="shards x arrays"),
    Row("folders", "folders", grows="2 x shards x arrays"),
    Row("log read, one record per file", "log_single_seconds", 1, "s", "shards"),
    Row("compact", "compact_seconds", 1, "s", "shards"),
    Row("log read, compacted", "log_seconds", _MS, "ms", "shards"),
    Row("**open**, compacted, first in a process", "open_first_seconds", _MS, "ms", "shards"),
    Row("**open**, compacted, again", "open_seconds", _MS, "ms", "shards"),
    Row("**status**, compacted", "status_seconds", _MS, "ms", "shards"),
    Row("missing shards listed", "missing_seconds", _MS, "ms", "shards"),
    Row("first lookup: maps the index, compares its checksums", "first_lookup_seconds", _MS, "ms", "names"),
    Row("**lookup** by name", "name_seconds", _US, "us", "log names"),
    Row("**lookup** by sha256", "sha_seconds", _US, "us", "log images"),
    Row("names of a row", "names_seconds", _US, "us", "log names"),
    Row("**anonymous memory** of an open store, one record per file", "memory_single", _MB, "MB", "shards"),
    Row("**anonymous memory** of an open store, compacted", "memory_open", _MB, "MB", "shards"),
    Row("the same after all lookups", "memory_looked_up", _MB, "MB", "shards"),
    Row("**file descriptors** of an open store", "descriptors_open", grows="constant"),
    Row("the same after lookups of every kind", "descriptors_looked_up", grows="constant: one per array of the ids"),
    Row(f"the same after reading from {TOUCHED_SHARDS:,} shards", "descriptors_read", grows="half of the limit"),
]


def measured(images: int, folder: Path) -> dict[str, float]:
    """Everything about one size; each step in a process of its own, so that memory is that step's."""
    path, found = folder / str(images), {}
    steps = ["make", "look_single", "compact", "look"]
    for step in tqdm(steps, f"{images:,} images", unit="step", disable=None):
        command = [sys.executable, "-m", "tests.benchmarks.scale", "--step", step, "--store", str(path), str(images)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        found |= json.loads(said.stdout)
    shutil.rmtree(path)
    return found


def make(path: Path, images: int) -> dict[str, float]:
    """Plan, ids, sparse shards, one record per shard."""
    rows = [(hashlib.sha256(image_name(row).encode()).hexdigest(), (image_name(row),)) for row in range(images)]
    specs: tuple[ArraySpec, ...] = tuple(SPECS.values())
    began = time.perf_counter()
    ids = ImageIds.build(rows)
    plan = Plan(
        n_images=images, shard_images=default_shard_images(specs, images), arrays=specs, fingerprints={},
        geometry=Geometry(grid=(24, 24), has_cls=True, tokens=576), identity="content", ids_digest=ids.digest(),
    )  # fmt: skip
    planned = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with StoreWriter.open(path, plan, ids, None):
        pass
    created = time.perf_counter()
    with no_fsync():
        for shard in tqdm(range(plan.n_shards), "sparse shards", unit="shard", leave=False, disable=None):
            commit_sparse(path, plan, ids, shard)
    return {
        "shards": plan.n_shards,
        "feature_bytes": plan.total_bytes,
        "plan_seconds": planned - began,
        "plan_memory": memory,
        "create_seconds": created - planned,
        "ids_bytes": sum(file.stat().st_size for file in (path / FEATURES / "ids").rglob("*") if file.is_file()),
    }


def commit_sparse(path: Path, plan: Plan, ids: ImageIds, shard: int) -> None:
    """The files of a shard with nothing in them, and its record."""
    rows, files = plan.rows(shard), {}
    for spec in plan.arrays:
        layout = plan.layout(spec.name)
        record = FileRecord(path=layout.relative_path(shard), bytes=layout.file_bytes(len(rows)), crc32c=shard)
        file = path / FEATURES / record.path
        file.parent.mkdir(parents=True)
        file.touch()
        os.truncate(file, record.bytes)
        files[spec.name] = record
    telemetry = {"began": 1.7e9 + shard, "ended": 1.7e9 + shard + 1, "tower_images": len(rows), "worker": "node-1:2:3"}
    publish(path, CommitRecord(
        shard=shard, first_row=rows.start, last_row=rows.stop - 1, ids_digest=ids.digest(rows),
        plan_digest=plan.digest, files=files, failures={}, telemetry=telemetry,
    ))  # fmt: skip


def look_single(path: Path, images: int) -> dict[str, float]:
    """What the store costs while each record is a file."""
    before = anonymous()
    store = FeatureStore.open(path)
    memory = anonymous() - before
    assert len(store.logs[0]) == store.plan.n_shards
    files, folders = count_files(path)
    return {
        "memory_single": memory,
        "files_single": files,
        "folders": folders,
        "log_single_seconds": timed(lambda: read_commits(path), 1),
    }


def compacted(path: Path, images: int) -> dict[str, float]:
    """Gather the records."""
    began = time.perf_counter()
    compact(path)
    took = time.perf_counter() - began
    log = (path / FOLDER / COMPACTED).stat().st_size
    return {"compact_seconds": took, "log_bytes": log, "files_compacted": count_files(path)[0]}


def look(path: Path, images: int) -> dict[str, float]:
    """What a compacted store costs a reader."""
    picked = np.random.default_rng(3).integers(0, images, LOOKUPS).tolist()
    names = [image_name(row) for row in picked]
    shas = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    before, held = anonymous(), descriptors()
    first, store = once(lambda: FeatureStore.open(path, verify="never"))
    found = {"open_first_seconds": first, "memory_open": anonymous() - before, "descriptors_open": descriptors() - held}
    first, row = once(lambda: store.ids.row_of_name(names[0]))
    assert row == picked[0]
    assert [store.ids.row_of_sha(sha) for sha in shas] == [store.ids.row_of_name(name) for name in names] == picked
    found["first_lookup_seconds"] = first
    for key, one, asked in (
        ("name_seconds", store.ids.row_of_name, names),
        ("sha_seconds", store.ids.row_of_sha, shas),
        ("names_seconds", store.ids.names, picked),
    ):
        found[key] = statistics.median(once(lambda one=one, value=value: one(value))[0] for value in asked)
    found |= {"memory_looked_up": anonymous() - before, "descriptors_looked_up": descriptors() - held}
    buffer = np.empty((1, *SPECS["raw"].shape), SPECS["raw"].storage)
    for shard in range(min(TOUCHED_SHARDS, store.plan.n_shards)):
        store.gather("raw", [store.plan.rows(shard).start], buffer)
    found["descriptors_read"] = descriptors() - held
    return found | {
        "missing_seconds": timed(lambda: store.missing_shards, ROUNDS),
        "open_seconds": timed(lambda: FeatureStore.open(path), ROUNDS),
        "log_seconds": timed(lambda: read_commits(path), ROUNDS),
        "status_seconds": timed(lambda: status(path), ROUNDS),
    }


STEPS: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "make": make, "look_single": look_single, "compact": compacted, "look": look,
}  # fmt: skip


def once(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def timed(work: Callable[[], Any], rounds: int) -> float:
    """Median seconds."""
    return statistics.median(once(work)[0] for _ in range(rounds))


def anonymous() -> int:
    """RssAnon in bytes: memory that no file backs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def descriptors() -> int:
    """Files that this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def count_files(path: Path) -> tuple[int, int]:
    """Files and folders below a folder."""
    counts = [(len(files), len(folders)) for _, folders, files in os.walk(path)]
    return sum(files for files, _ in counts), sum(folders for _, folders in counts)


def missed(found: dict[int, dict[str, float]]) -> list[str]:
    """Demands that do not hold."""
    slow = [
        f"{key} at {images:,} images: {values[key] * 1e6:.1f} us, at most {MOST_LOOKUP_SECONDS * 1e6:.0f} us"
        for images, values in found.items()
        for key in ("name_seconds", "sha_seconds", "names_seconds")
        if values[key] > MOST_LOOKUP_SECONDS
    ]
    if OPEN_AT in found and found[OPEN_AT]["open_first_seconds"] > MOST_OPEN_SECONDS:
        taken = found[OPEN_AT]["open_first_seconds"] * 1e3
        slow.append(f"open at {OPEN_AT:,} images: {taken:.0f} ms, at most {MOST_OPEN_SECONDS * 1e3:.0f} ms")
    return slow


def page(found: dict[int, dict[str, float]], seconds: float) -> str:
    """The table, with where and with what it was measured."""
    head = ["", *(f"{images:,} images" for images in found), "grows with"]
    rows = [[row.what, *(row.cell(values) for values in found.values()), row.grows] for row in ROWS]
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    sections = [
        "# How a store grows",
        f"Written by `python -m tests.benchmarks.scale {' '.join(sys.argv[1:])}` on {time.strftime('%Y-%m-%d')}. "
        "LLaVA-1.5's `raw` and `projected` in 16 bit, 64 images a shard, one name an image. Shard files are sparse, of the right "
        "size; plan, ids, commit records and folders are real. Times are those of this machine with a warm page "
        "cache: what counts is how they grow. Process start and imports are not counted. "
        "Demands: opening 665,298 images at most 100 ms, a lookup at most 50 us.",
        table(head, rows),
        "*Compacted* means after `python -m store compact STORE`, which moves the commit records, one small file per shard, "
        "into one file. It is worth its while from about 10,000 shards on, where a store is opened often or lies on a network "
        "disk, and it may run while workers write. Memory that is not anonymous is the page cache's, shared by all processes: "
        "ids are mapped, and only what lookups touch is read.",
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, at most {soft:,} open files; Python "
        f"{platform.python_version()}, {versions}; {seconds / 60:.0f} minutes in all.",
    ]
    return "\n\n".join(sections) + "\n"


def say_price(sizes: list[int], folder: Path) -> None:
    """Before anything is done."""
    images, free = sum(sizes), shutil.disk_usage(folder).free
    print(
        f"this takes about {max(1, images * _SECONDS_PER_IMAGE / 60):.0f} minutes, {images * _DISK_PER_IMAGE / 1e9:.1f} GB "
        f"in {folder} ({free / 1e9:.1f} GB are free) and {max(sizes) * _MEMORY_PER_IMAGE / 1e9:.1f} GB of memory",
        file=sys.stderr,
    )
    if free < images * _DISK_PER_IMAGE:
        sys.exit(f"expected {images * _DISK_PER_IMAGE:,} bytes free in {folder}, found {free:,}: name another --folder")


def main() -> None:
    """Measure every size, print the page, say by the exit status whether every demand is met."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sizes", nargs="*", type=int, metavar="IMAGES", help="How many; several for several columns.")
    parser.add_argument("--markdown", type=Path, help="Write the table to this file.")
    parser.add_argument("--folder", type=Path, help="Where the stores are made for the time being.")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = arguments.sizes or list(SIZES)
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments.store, *sizes)))
        return
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        say_price(sizes, Path(folder))
        found = {images: measured(images, Path(folder)) for images in sizes}
    text = page(found, time.perf_counter() - began)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)
    slow = missed(found)
    for one in slow:
        print(f"missed: {one}", file=sys.stderr)
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
