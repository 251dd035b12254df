# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Reading a store: only what the log says is committed, checked the first time it is read, at the speed of memory."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import zarr
from numpy.typing import NDArray

from configs.experiment import StoreLocation
from store.errors import IntegrityError, RowUnavailable
from store.files.disk import content
from store.files.recycled import Recycled
from store.layout.ids import ImageIds
from store.layout.plan import CONFIG, FEATURES, Plan, newest_generation, read_plan
from store.layout.seal import Sealed
from store.log.commits import CommitLog, read_commits
from store.reading.committed import CommittedStore
from store.reading.opening import as_integrity_error, open_features, require_metadata, stored_ids
from store.reading.prefetch import prefetched
from store.reading.projector_state import ProjectorState, read_projector
from store.reading.remote import RemoteShard, RemoteStore, reached
from store.reading.shard_file import LocalZarrShard, MappedShard, PositionalShard, ShardFile, StoredShard, Verify

READ_THREADS = 16
"""Reads that run side by side with `access="preadv"` and for a store behind a URL."""
Access = Literal["mmap", "preadv", "zarr"]
"""`mmap` for a local disk, `preadv` for a network or cold disk, `zarr` for any disk; all three read the same bytes."""


class FeatureStore(CommittedStore):
    """A store that is open for reading.

    Examples:
        >>> store = FeatureStore.open(Path("runs/demo/store"))  # doctest: +SKIP
        >>> store.gather("raw", [0, 1]).shape  # doctest: +SKIP
        (2, 576, 96)

    """

    _recycled = Recycled()
    """Memory of arrays, shared by all stores: a store that is opened anew reuses what the last store gave back."""

    def __init__(
        self, path: StoreLocation, folder: Path, remote: RemoteStore | None, plan: Plan, logs: Sequence[CommitLog],
        ids: ImageIds, features: zarr.Group, verify: Verify, access: Access, believe_plan: bool,
    ) -> None:  # fmt: skip
        super().__init__(path, folder, plan, logs, ids, believe_plan)
        self._remote, self._features = remote, features
        self._verify: Verify = verify
        self._access: Access = access
        self._files: OrderedDict[tuple[str, int], ShardFile] = OrderedDict()
        self._sealed: dict[tuple[str, int], Sealed] = {}
        self._max_files = max_open_files()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READ_THREADS, "read") if access == "preadv" or remote is not None else None

    @classmethod
    def open(
        cls, path: StoreLocation, believe_plan: bool = False, verify: Verify = "first-read", access: Access = "mmap"
    ) -> "FeatureStore":
        """Open a store: read its plan, log and ids, but no features.

        Args:
            path: A folder, or a URL such as `s3://bucket/folder`, which is read through zarr whatever `access` says.
            believe_plan: Open a store whose plan was changed after its shards were committed, to look into it.
            verify: When checksums of rows are compared.
            access: How shards are read.

        Raises:
            StoreMissing: there is no store at `path`, or it has no features yet (exit 5).
            IntegrityError: the plan, the log, the metadata or the ids are damaged (exit 4).
        """
        with reached(path) as (folder, remote):
            while True:
                plan = read_plan(folder)
                features = open_features(folder)
                if not believe_plan:
                    require_metadata(folder, plan)
                ids = stored_ids(folder, plan)
                logs = [read_commits(folder, generation) for generation in range(plan.generation + 1)]
                if newest_generation(folder) == plan.generation:  # the store has not grown meanwhile
                    break
            return cls(path, folder, remote, plan, logs, ids, features, verify, access, believe_plan)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the store lies and how it is read: unpickling opens the store anew, from any current folder."""
        path = self.path.absolute() if isinstance(self.path, Path) else self.path
        return FeatureStore.open, (path, self._believe_plan, self._verify, self._access)

    @property
    def config(self) -> bytes | None:
        """The resolved config of the extraction; None if no config was saved beside the features."""
        try:
            return content(self._folder / CONFIG)
        except FileNotFoundError:
            return None

    @property
    def projector(self) -> ProjectorState | None:
        """The projector's weights; None if the model's projector could not be reached when the store was made."""
        return read_projector(self._folder, self._features)

    def gather(self, name: str, rows: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read rows of an array as (row, *shape) in storage dtype (bfloat16 as uint16).

        Args:
            name: The array.
            rows: The rows to read, in any order.
            out: Memory to read into; default: memory that earlier calls no longer use, or fresh memory.

        Raises:
            RowUnavailable: a row failed, or is not committed (exit 4).
            IntegrityError: bytes differ from the bytes that were committed (exit 4).
        """
        spec = self.arrays[name]
        if out is None:
            out = self._recycled.empty((len(rows), *spec.shape), spec.storage)
        for shard in {row // self.plan.shard_images for row in rows}:
            if (file := self._files.get((name, shard))) is not None:
                file.require_uncut()
        if self._pool is None:
            for index, row in enumerate(rows):
                self._read(name, row, out[index])
        else:
            list(self._pool.map(self._read, [name] * len(rows), rows, out))
        return out

    def will_need(self, name: str, rows: Iterable[int]) -> None:
        """Let the operating system fetch rows that are read soon; skips unreadable rows, as reading them raises the error."""
        for row in rows:
            shard, inside = divmod(row, self.plan.shard_images)
            with suppress(IntegrityError, RowUnavailable):
                file = self._file(name, shard, row)
                if inside < file.rows and row not in self._failed_of(name):
                    file.will_need(inside)

    def stream(self, names: Sequence[str], batches: Iterable[Sequence[int]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the rows of each batch by array, in fresh arrays; a thread reads ahead."""

        def read(rows: Sequence[int]) -> dict[str, NDArray[Any]]:
            return {name: self.gather(name, rows) for name in names}

        def announce(rows: Sequence[int]) -> None:
            for name in names:
                self.will_need(name, rows)

        return prefetched(batches, read, announce=announce)

    def _read(self, name: str, row: int, out: NDArray[Any]) -> None:
        why = self._failed_of(name).get(row)
        if why is not None:
            raise RowUnavailable(f"{name} of row {row} ({self._named(row)}) could not be encoded: {why}")
        shard, inside = divmod(row, self.plan.shard_images)
        file = self._file(name, shard, row)
        if inside >= file.rows:
            raise self._no_such_row(row)
        file.read(inside, out)

    def _file(self, name: str, shard: int, row: int) -> ShardFile:
        """Return the open file of a shard, opening it if necessary; `row` is the row that it is opened for."""
        key = (name, shard)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        opened = self._open(name, shard, row)
        with self._lock:
            self._files[key] = opened
            if len(self._files) > self._max_files:
                self._files.popitem(last=False)
        return opened

    def _open(self, name: str, shard: int, row: int) -> ShardFile:
        if not 0 <= shard < self.plan.n_shards or row not in self.plan.rows(shard):
            raise self._no_such_row(row)
        commit = self.record(name, shard)
        if commit is None:
            raise RowUnavailable(
                f"row {row} ({self._named(row)}) is not committed yet: run {self._maker([name])} to go on"
            )
        record, layout = commit.files[name], self.plan.layout(name)
        rows, repair = self.plan.rows(shard), self._repair(name, shard)
        path = self._folder / FEATURES / record.path
        if self._remote is not None:
            with self._remote.errors_named(), as_integrity_error(self._folder / FEATURES / name):
                return RemoteShard(self._remote, layout, record, rows, repair)
        if self._access == "zarr" or record.codec != "none":
            with as_integrity_error(self._folder / FEATURES / name):
                return LocalZarrShard(_array(self._features, name), path, layout, rows, record, repair)
        kind: type[StoredShard] = PositionalShard if self._access == "preadv" else MappedShard
        file = kind(path, layout, len(rows), record, repair, self._sealed.get((name, shard)), self._verify)
        self._sealed[name, shard] = file.sealed  # kept when the file is closed, so that it is not checked again
        return file

    def _no_such_row(self, row: int) -> RowUnavailable:
        return RowUnavailable(
            f"expected a row of an image, below {self.plan.n_rows}, got {row}: there is no such image"
        )

    def _repair(self, name: str, shard: int) -> str:
        """Say what a user can do about a damaged shard."""
        if self._remote is not None:
            return f"copy the files of shard {shard} to {self.path} again"
        if self.codec != "none":
            return f"{self.path} is an archive, make another of its store"
        return f"`python -m store repair {self.path}` withdraws shard {shard}, {self._maker([name])} computes it again"


def max_open_files() -> int:
    """Return how many shard files are kept open at a time: half of the files that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(soft, 4096) // 2)


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    member = group[name]
    if not isinstance(member, zarr.Array):
        raise ValueError(f"expected the array {name}, found a group")
    return member
