"""Other libraries that keep such rows, in an environment of their own: they bring an old numpy, and torchvision.

    .bench-venv/bin/python -m tests.benchmarks.store.others FOLDER

FOLDER has raw.npy, and the store whose array tensorstore reads. Each library is timed against np.memmap in this process,
so that its ratio stands beside those of the project's own environment. Prints JSON; a library that is missing or fails is
named with its reason, the others still run.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.store.data import BATCH, IMAGES, SHAPES, Rows, map_flat
from tests.benchmarks.store.timing import ROUNDS, Reader, interleaved_readers, random_rows

SHAPE = SHAPES["raw"]
PART_BYTES = 1 << 26
"""Size of one file of litdata, MDS and webdataset: 64 MB, what they advise."""
_LMDB_BYTES = 1 << 31
_REASON_CHARACTERS = 160


def tensorstore(folder: Path, _: Rows, out: Rows) -> Reader:
    """This project's own shards, through tensorstore's Zarr v3 driver: checksums are verified on every read."""
    import tensorstore as ts

    kvstore = {"driver": "file", "path": str(folder / "store/features.zarr/raw")}
    array = ts.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    into = ts.array(out, copy=False, write=True)
    return lambda rows: into.write(array[rows]).result()


def lmdb(folder: Path, flat: Rows, out: Rows) -> Reader:
    """One value an image, read without a copy of its own."""
    import lmdb as library

    path = str(folder / "lmdb")
    with library.open(path, map_size=_LMDB_BYTES) as writing, writing.begin(write=True) as transaction:
        for row in range(IMAGES):
            transaction.put(b"%08d" % row, flat[row].tobytes())
    reading = library.open(path, map_size=_LMDB_BYTES, readonly=True, lock=False)

    def read(rows: list[int]) -> None:
        with reading.begin(buffers=True) as transaction:
            for place, row in enumerate(rows):
                out[place] = np.frombuffer(transaction.get(b"%08d" % row), np.float16).reshape(SHAPE)

    return read


def litdata(folder: Path, flat: Rows, out: Rows) -> Reader:
    """Its chunks, by index of its dataset: by index of its cache every image would read a chunk."""
    from litdata.streaming import Cache, StreamingDataset

    cache = Cache(str(folder / "litdata"), chunk_bytes=PART_BYTES)
    for row in range(IMAGES):
        cache[row] = {"raw": np.array(flat[row])}
    cache.done()
    cache.merge()
    reading = StreamingDataset(str(folder / "litdata"))
    return _each_into(out, lambda row: reading[row]["raw"])


def mds(folder: Path, flat: Rows, out: Rows) -> Reader:
    """MosaicML's shards, by index."""
    from streaming import LocalDataset, MDSWriter

    columns = {"raw": f"ndarray:float16:{','.join(map(str, SHAPE))}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=PART_BYTES) as writer:
        for row in range(IMAGES):
            writer.write({"raw": np.array(flat[row])})
    reading = LocalDataset(str(folder / "mds"))
    return _each_into(out, lambda row: reading[row]["raw"])


def webdataset(folder: Path, flat: Rows, out: Rows) -> Reader:
    """The next rows of the tar files: it cannot read by index."""
    import webdataset as library

    pattern = str(folder / "webdataset-%d.tar")
    with library.ShardWriter(pattern, maxsize=PART_BYTES, verbose=0) as writer:
        for row in range(IMAGES):
            writer.write({"__key__": f"{row:08}", "raw": flat[row].tobytes()})
    urls = sorted(str(path) for path in folder.glob("webdataset-*.tar"))
    samples = iter(library.WebDataset(urls, shardshuffle=False).repeat())

    def read(rows: list[int]) -> None:
        for place in range(len(rows)):
            out[place] = np.frombuffer(next(samples)["raw"], np.float16).reshape(SHAPE)

    return read


LIBRARIES: dict[str, tuple[str, Callable[[Path, Rows, Rows], Reader]]] = {
    "tensorstore": ("this store's shards", tensorstore),
    "lmdb": ("by key", lmdb),
    "litdata": ("by index", litdata),
    "mosaicml-streaming": ("MDS, by index", mds),
    "webdataset": ("sequential", webdataset),
}
"""By package; each with what it reads, or how."""
INDEX = "np.memmap[rows]"


def measure(folder: Path) -> dict[str, Any]:
    """Speed of each reader relative to np.memmap[rows], versions, and reasons of those that could not run."""
    flat, out = map_flat(folder, "raw"), np.empty((BATCH, *SHAPE), np.float16)
    readers: dict[str, Reader] = {INDEX: lambda rows: flat[rows]}
    failed: dict[str, str] = {}
    for package, (how, opened) in LIBRARIES.items():
        try:
            read = opened(folder, flat, out)
            _require_right(how, read, flat, out)
            readers[f"{package} {version(package)}, {how}"] = read
        except Exception as error:  # whatever a foreign library raises is its row's reason
            failed[package] = f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS]
    took = interleaved_readers(readers, ROUNDS)
    ratios = {name: took[INDEX] / seconds for name, seconds in took.items() if name != INDEX}
    return {"numpy": np.__version__, "ratios": ratios, "failed": failed}


def from_other_environment(environment: Path, folder: Path) -> dict[str, Any]:
    """What `measure` says in a virtual environment; the reason for every library if that was not built, or fails."""
    if not (environment / ".ready").exists():
        said = environment / "pip.err"
        errors = [line for line in said.read_text().splitlines() if "ERROR" in line] if said.exists() else []
        return _none(f"{environment} could not be built: {(errors or ['`make bench-store` says why'])[-1]}")
    command = [str(environment / "bin/python"), "-m", "tests.benchmarks.store.others", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    if done.returncode:
        return _none((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _none(reason: str) -> dict[str, Any]:
    failed = dict.fromkeys(LIBRARIES, reason[:_REASON_CHARACTERS])
    return {"numpy": "none", "ratios": {}, "failed": failed}


def _each_into(out: Rows, one: Callable[[int], Any]) -> Reader:
    def read(rows: list[int]) -> None:
        for place, row in enumerate(rows):
            out[place] = one(row)

    return read


def _require_right(how: str, read: Reader, flat: Rows, out: Rows) -> None:
    """The rows asked for; of a sequential reader the first ones."""
    rows = list(range(BATCH)) if how == "sequential" else random_rows()
    out[:] = 0
    read(rows)
    if not np.array_equal(out, flat[rows]):
        raise AssertionError("it returned other rows than it was asked for")


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
