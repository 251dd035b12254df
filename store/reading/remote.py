"""Reading a store from an object store, `s3://bucket/folder`; needs the extra `[remote]`.

Endpoint, region and credentials come from the usual AWS_* variables, such as AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true for
a server without TLS. `gs://` is read in the same way with the GOOGLE_* variables; it has not been tested.

Opening a store copies its small files (plans, log, metadata, ids, projector) to a temporary folder and compares them with
their checksums there. Features are read through zarr, row by row. A file's index and checksums are compared with its record
before the file's first row is read.
"""

import shutil
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import ObjectStore, StorePath

from configs.experiment import StoreLocation, store_location
from store.errors import IntegrityError, StoreError, StoreMissing
from store.layout.manifest import HEAL, read_manifest
from store.layout.plan import FEATURES, newest_generation, plan_path, read_plan, read_plan_file
from store.layout.schema import ShardLayout
from store.layout.seal import committed_checksums, other_file, stored_index
from store.layout.shard import FileRecord, Readable
from store.log.scratch import scratch_folder
from store.reading.shard_file import ZarrShard

THREADS = 16
"""Requests to the object store that run side by side while small files are copied."""
_BLOCK = 1 << 23
"""Bytes that one request fetches while `verify` reads a file from beginning to end."""
_NEAR = 4096
"""Two parts of a file that lie at most this many bytes apart are fetched as one."""
_zarr: Any = zarr  # typed in part
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


class RemoteStore:
    """A store behind a URL; `folder` holds a copy of everything but its shards, for as long as this object lives."""

    def __init__(self, url: str) -> None:
        """Copy the small files of the store at `url` into a temporary folder.

        Raises:
            StoreMissing: obstore is not installed, or there is no store at the URL (exit 5).
            IntegrityError: a small file is damaged or missing (exit 4).
        """
        self.url = url.rstrip("/")
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._obstore, self._objects = _connect(self.url)
        self.folder = scratch_folder("encode-once")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        with self.errors_named():
            self._mirror()

    def array(self, name: str) -> zarr.Array[Any]:
        """Open an array in the object store, or return it if it is open."""
        if name not in self._arrays:
            path = StorePath(ObjectStore(self._objects, read_only=True), f"{FEATURES}/{name}")
            with self.errors_named():
                self._arrays[name] = _zarr.Array.open(path)
        return self._arrays[name]

    def size(self, name: str) -> int | None:
        """Return the bytes that a file of the store has, by the file's path in the store; None if there is no such file."""
        with self.errors_named():
            try:
                return int(self._obstore.head(self._objects, name)["size"])
            except FileNotFoundError:
                return None

    @contextmanager
    def open(self, name: str) -> Generator[Readable, None, None]:
        """Open a file of the store for reading, by its path in the store."""
        with self.errors_named():
            yield self._obstore.open_reader(self._objects, name, buffer_size=_BLOCK)

    def parts(self, name: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Fetch parts of a file of the store side by side, each given by its offset and its length in bytes."""
        starts, lengths = [offset for offset, _ in parts], [length for _, length in parts]
        contents = self._obstore.get_ranges(self._objects, name, starts=starts, lengths=lengths, coalesce=_NEAR)
        return [bytes(content) for content in contents]

    def about_the_url(self, text: str) -> str:
        """Rewrite a sentence about the temporary folder as a sentence about the store at the URL."""
        return text.replace(HEAL, "copy it there again").replace(str(self.folder), self.url)

    @contextmanager
    def errors_named(self) -> Generator[None, None, None]:
        """Let errors of the store name its URL, and turn errors of the connection into StoreMissing (exit 5)."""
        try:
            yield
        except self._obstore.exceptions.BaseError as error:
            reason = " ".join(str(error).partition("Debug source")[0].split())
            raise StoreMissing(
                f"cannot read {self.url} ({reason}): check the URL, AWS_ENDPOINT_URL, AWS_REGION and the credentials"
            ) from None
        except StoreError as error:
            raise type(error)(self.about_the_url(str(error))) from None

    def _mirror(self) -> None:
        """Copy the plans, the log and the files that the newest manifest names into the folder, and compare them with it."""
        listings = [self._obstore.list(self._objects, folder) for folder in ("plans", "commits")]
        names: list[str] = [entry["path"] for pages in listings for page in pages for entry in page]
        self._fetch([*names, "config.yaml"])
        if newest_generation(self.folder) is None:
            raise StoreMissing(f"expected a feature store at {self.url}, there is none: copy one there with its plans")
        newest = read_plan(self.folder).generation
        manifest = read_manifest(self.folder, newest)
        self._fetch([f"{FEATURES}/{name}" for name in [*manifest.files, *self._earlier_ids(newest)]])
        damaged = manifest.damaged(self.folder / FEATURES)
        if damaged:
            raise IntegrityError(
                f"{self.url}/{FEATURES}/{damaged[0]} is damaged or missing: copy the store there again"
            )

    def _earlier_ids(self, newest: int) -> Iterator[str]:
        """Name the ids files of generations before the newest: `verify` compares them with their manifests."""
        for generation in range(newest):
            with suppress(IntegrityError):  # `verify` reports a damaged plan or manifest
                plan = read_plan_file(plan_path(self.folder, generation), HEAL)
                files = read_manifest(self.folder, generation).files
                yield from [name for name in files if name.startswith(f"{plan.ids_group}/")]

    def _fetch(self, names: Iterable[str]) -> None:
        """Copy files into the folder, skipping files that do not exist: comparing with the manifest finds their absence."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._fetch_one, names))

    def _fetch_one(self, name: str) -> None:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise IntegrityError(f"expected names of files inside {self.url}, found {name!r}: restore the store")
        copy = self.folder / name
        try:
            content = bytes(self._obstore.get(self._objects, name).bytes())
        except FileNotFoundError:
            return
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)


class RemoteShard(ZarrShard):
    """A committed file in an object store; opening it raises IntegrityError if it is gone or has another size."""

    def __init__(self, remote: RemoteStore, layout: ShardLayout, record: FileRecord, rows: range, repair: str) -> None:
        super().__init__(remote.array(layout.spec.name), rows, layout.spec.dtype, repair)
        self._remote, name = remote, f"{FEATURES}/{record.path}"
        size = remote.size(name)
        if size != record.bytes:
            actual = "none" if size is None else f"{size:,} bytes"
            raise IntegrityError(
                f"expected {remote.url}/{name} with {record.bytes:,} bytes as committed, found {actual}: {repair}"
            )
        fetch = partial(remote.parts, name)
        if committed_checksums(stored_index(fetch, record, layout), fetch, record, layout) is None:
            raise other_file(f"{remote.url}/{name}", repair)

    def read(self, index: int, out: NDArray[np.generic]) -> None:
        """Copy a row through zarr; StoreMissing (exit 5) if the connection fails."""
        with self._remote.errors_named():
            super().read(index, out)


@contextmanager
def reached(location: StoreLocation) -> Generator[tuple[Path, RemoteStore | None], None, None]:
    """Yield the folder of a store, and its RemoteStore if it lies behind a URL; errors inside the block name the store.

    Behind a URL, the folder is a temporary copy of everything but the shards.
    """
    path = store_location(location)
    if isinstance(path, Path):
        yield path, None
        return
    remote = RemoteStore(path)
    with remote.errors_named():
        yield remote.folder, remote


def _connect(url: str) -> tuple[Any, Any]:
    """Return the optional library obstore, and its client for the URL."""
    try:
        obstore, stores = import_module("obstore"), import_module("obstore.store")
    except ImportError:
        raise StoreMissing(f"expected obstore to read {url}: pip install 'encode-once[remote]'") from None
    return obstore, stores.from_url(url, retry_config=_RETRIES)
