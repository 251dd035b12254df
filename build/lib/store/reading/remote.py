"""A store read where it lies in an object store: `s3://bucket/folder`, with the extra `[remote]`.

Endpoint, region and credentials come from the usual AWS_* variables, such as AWS_ENDPOINT_URL, and AWS_ALLOW_HTTP=true for
a server without TLS. `gs://` takes the same way with the GOOGLE_* variables; it has not been tested.

What is small (plans, log, metadata, ids, projector) is copied to a temporary folder when a store is opened, and compared
with its checksums there; features are read through zarr, row by row. A file's index and checksums are compared with its
record before its first row is read.
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
from store.layout.schema import Layout
from store.layout.seal import committed_checksums, other_file, stored_index
from store.layout.shard import FileRecord, Readable
from store.log.scratch import scratch_folder
from store.reading.shard_file import ZarrShard

THREADS = 16
_BLOCK = 1 << 23
_NEAR = 4096
"""Bytes between two parts of a file below which both are fetched as one."""
_zarr: Any = zarr
"""Typed in part."""
_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


class RemoteStore:
    """A store behind a URL; `folder` has everything of it but its shards, as long as this object lives."""

    def __init__(self, url: str) -> None:
        """Raises StoreMissing (exit 5) where obstore or the store is not there, IntegrityError (exit 4)."""
        self.url = url.rstrip("/")
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._obstore, self._objects = _connect(self.url)
        self.folder = scratch_folder("encode-once")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        with self.naming():
            self._mirror()

    def array(self, name: str) -> zarr.Array[Any]:
        """An array where it lies."""
        if name not in self._arrays:
            where = StorePath(ObjectStore(self._objects, read_only=True), f"{FEATURES}/{name}")
            with self.naming():
                self._arrays[name] = _zarr.Array.open(where)
        return self._arrays[name]

    def size(self, name: str) -> int | None:
        """Bytes of a file of the store, by its path; None if it is not there."""
        with self.naming():
            try:
                return int(self._obstore.head(self._objects, name)["size"])
            except FileNotFoundError:
                return None

    @contextmanager
    def open(self, name: str) -> Generator[Readable, None, None]:
        """A file of the store, to read."""
        with self.naming():
            yield self._obstore.open_reader(self._objects, name, buffer_size=_BLOCK)

    def parts(self, name: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of a file of the store, each given by its offset and its length; asked for side by side."""
        starts, lengths = [offset for offset, _ in parts], [length for _, length in parts]
        got = self._obstore.get_ranges(self._objects, name, starts=starts, lengths=lengths, coalesce=_NEAR)
        return [bytes(part) for part in got]

    def said(self, text: str) -> str:
        """A sentence about the temporary folder, as one about the store."""
        return text.replace(HEAL, "copy it there again").replace(str(self.folder), self.url)

    @contextmanager
    def naming(self) -> Generator[None, None, None]:
        """Errors of the store name its URL; those of the connection become a StoreMissing (exit 5)."""
        try:
            yield
        except self._obstore.exceptions.BaseError as error:
            said = " ".join(str(error).partition("Debug source")[0].split())
            raise StoreMissing(
                f"cannot read {self.url} ({said}): check the URL, AWS_ENDPOINT_URL, AWS_REGION and the credentials"
            ) from None
        except StoreError as error:
            raise type(error)(self.said(str(error))) from None

    def _mirror(self) -> None:
        listed = [self._obstore.list(self._objects, folder) for folder in ("plans", "commits")]
        found: list[str] = [one["path"] for parts in listed for part in parts for one in part]
        self._fetch([*found, "config.yaml"])
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
        """Files of ids that generations before the newest wrote, which `verify` compares with their manifests."""
        for generation in range(newest):
            with suppress(IntegrityError):  # said by verify
                plan = read_plan_file(plan_path(self.folder, generation), HEAL)
                files = read_manifest(self.folder, generation).files
                yield from [name for name in files if name.startswith(f"{plan.ids_group}/")]

    def _fetch(self, names: Iterable[str]) -> None:
        """Copy files into the folder; what is not there is missed when it is compared with the manifest."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._fetch_one, names))

    def _fetch_one(self, name: str) -> None:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise IntegrityError(f"expected names of files inside {self.url}, found {name!r}: restore the store")
        place = self.folder / name
        try:
            content = bytes(self._obstore.get(self._objects, name).bytes())
        except FileNotFoundError:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


class RemoteShard(ZarrShard):
    """A committed file of one array where it lies; IntegrityError where it is gone or has another size."""

    def __init__(self, remote: RemoteStore, layout: Layout, record: FileRecord, rows: range, repair: str) -> None:
        super().__init__(remote.array(layout.spec.name), rows, layout.spec.dtype, repair)
        self._remote, name = remote, f"{FEATURES}/{record.path}"
        size = remote.size(name)
        if size != record.bytes:
            found = "none" if size is None else f"{size:,} bytes"
            raise IntegrityError(
                f"expected {remote.url}/{name} with {record.bytes:,} bytes as committed, found {found}: {repair}"
            )
        fetch = partial(remote.parts, name)
        if committed_checksums(stored_index(fetch, record, layout), fetch, record, layout) is None:
            raise other_file(f"{remote.url}/{name}", repair)

    def read(self, place: int, out: NDArray[np.generic]) -> None:
        """Through zarr; StoreMissing (exit 5) where the connection fails."""
        with self._remote.naming():
            super().read(place, out)


@contextmanager
def reached(location: StoreLocation) -> Generator[tuple[Path, RemoteStore | None], None, None]:
    """The folder with all of a store but, behind a URL, its shards; errors inside the block name the store."""
    path = store_location(location)
    if isinstance(path, Path):
        yield path, None
        return
    remote = RemoteStore(path)
    with remote.naming():
        yield remote.folder, remote


def _connect(url: str) -> tuple[Any, Any]:
    """The library, which is optional, and what it makes of the URL."""
    try:
        obstore, stores = import_module("obstore"), import_module("obstore.store")
    except ImportError:
        raise StoreMissing(f"expected obstore to read {url}: pip install 'encode-once[remote]'") from None
    return obstore, stores.from_url(url, retry_config=_RETRIES)
