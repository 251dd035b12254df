# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Reading a store: only what the log says is committed, checked the first time it is read, at memory speed."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from configs.experiment import StoreLocation
from store.errors import IntegrityError, RowUnavailable, StoreMissing
from store.files.disk import content
from store.files.recycled import Recycled
from store.layout.fingerprint import Fingerprint
from store.layout.ids import ImageIds
from store.layout.plan import CONFIG, FEATURES, Plan, read_plan
from store.layout.schema import ArraySpec, Codec, Dtype, holds_fill
from store.layout.seal import Sealed
from store.log.commits import CommitLog, CommitRecord, read_commits
from store.reading.absent import how_to_add
from store.reading.opening import damage, open_features, require_metadata, require_ours, stored_ids, subgroup
from store.reading.prefetch import prefetched
from store.reading.remote import RemoteShard, RemoteStore, reached
from store.reading.shard_file import LocalZarrShard, MappedShard, PositionalShard, ShardFile, StoredShard, Verify

PROJECTOR = "projector"
READ_THREADS = 16
"""Reads under way at a time with `access="preadv"`."""
Access = Literal["mmap", "preadv", "zarr"]
"""`mmap` for a local disk, `preadv` for a network or cold one, `zarr` for any: the same bytes."""
_SHOWN = 5


@dataclass(frozen=True)
class ProjectorState:
    """A projector without torch: what `store.projectors.build` makes a module of."""

    kind: str
    """Name of its file in store/projectors."""
    config: Mapping[str, Any]
    weights: Mapping[str, NDArray[Any]]
    """In storage dtype."""
    dtypes: Mapping[str, Dtype]
    """Logical dtype of each weight."""
    sha256: str
    """Of the weights, as in the fingerprint of `projected`."""


class FeatureStore:
    """A store, open for reading.

    >>> store = FeatureStore.open(Path("runs/demo/store"))  # doctest: +SKIP
    >>> store.gather("raw", [0, 1]).shape  # doctest: +SKIP
    (2, 576, 96)
    """

    _recycled = Recycled()  # of all stores together: a store that is opened anew takes over what the last one gave back

    def __init__(
        self, path: StoreLocation, folder: Path, remote: RemoteStore | None, plan: Plan, logs: Sequence[CommitLog],
        ids: ImageIds, features: zarr.Group, verify: Verify, access: Access, believe_plan: bool,
    ) -> None:  # fmt: skip
        self.path, self.plan, self.logs, self.ids = path, plan, logs, ids
        self._folder, self._remote = folder, remote
        self.arrays: dict[str, ArraySpec] = {spec.name: spec for spec in plan.arrays}
        self._failed: dict[str, Mapping[int, str]] = {}
        self._features = features
        self._verify: Verify = verify
        self._access: Access = access
        self._believe_plan = believe_plan
        self._files: OrderedDict[tuple[str, int], ShardFile] = OrderedDict()
        self._sealed: dict[tuple[str, int], Sealed] = {}
        self._max_files = max_open_files()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READ_THREADS, "read") if access == "preadv" or remote is not None else None

    @classmethod
    def open(
        cls, path: StoreLocation, believe_plan: bool = False, verify: Verify = "first-read", access: Access = "mmap"
    ) -> "FeatureStore":
        """Read plan, log and ids; raises StoreMissing (exit 5) or IntegrityError (exit 4).

        `path` is a folder, or a URL such as `s3://bucket/folder`, which is read through zarr whatever `access` says.
        `believe_plan` opens a store whose plan was changed after its shards were committed, to look into it.
        """
        with reached(path) as (folder, remote):
            while True:
                plan = read_plan(folder)
                features = open_features(folder)
                if not believe_plan:
                    require_metadata(folder, plan)
                ids = stored_ids(folder, plan)
                logs = [read_commits(folder, generation) for generation in range(plan.generation + 1)]
                if read_plan(folder).generation == plan.generation:  # it has not grown meanwhile
                    break
            store = cls(path, folder, remote, plan, logs, ids, features, verify, access, believe_plan)
            store._require_own_logs()
        return store

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the store lies and how it is read: whoever unpickles it opens it anew, from any folder."""
        path = self.path.absolute() if isinstance(self.path, Path) else self.path
        return FeatureStore.open, (path, self._believe_plan, self._verify, self._access)

    def fingerprint(self, name: str) -> Fingerprint:
        """What made an array."""
        return self.plan.fingerprints[name]

    @property
    def codec(self) -> Codec:
        """How the shards are compressed: with zstd in an archive."""
        records = (record for log in self.logs for record in log.values())
        files = (file for record in records for file in record.files.values())
        return "none" if (first := next(files, None)) is None else first.codec

    @property
    def config(self) -> bytes | None:
        """The resolved config of the extraction, if it was saved beside the features."""
        try:
            return content(self._folder / CONFIG)
        except FileNotFoundError:
            return None

    @property
    def committed_shards(self) -> list[int]:
        """Shards of which every array is committed."""
        return self.shards_with(self.arrays)

    @property
    def committed_rows(self) -> list[int]:
        """Rows of committed shards, failed ones included."""
        return [row for shard in self.committed_shards for row in self.plan.rows(shard)]

    @property
    def missing_shards(self) -> list[int]:
        """Shards of which an array is not committed."""
        return sorted({*range(self.plan.n_shards)} - {*self.committed_shards})

    def shards_with(self, names: Iterable[str]) -> list[int]:
        """Shards of which some arrays are committed."""
        wanted = [*names]
        return [shard for shard in range(self.plan.n_shards) if all(self._is_committed(n, shard) for n in wanted)]

    def rows_with(self, names: Iterable[str]) -> list[int]:
        """Rows that hold features of all of some arrays."""
        wanted = [*names]
        failed = self.failed(wanted)
        return [row for shard in self.shards_with(wanted) for row in self.plan.rows(shard) if row not in failed]

    def failed(self, names: Iterable[str] | None = None) -> dict[int, str]:
        """Rows that lack one of some arrays (default: any) because their image could not be encoded, with the reason.

        An array that was added while an image could not be read lacks that image alone: its other arrays are there.
        """
        found = [self._failed_of(name) for name in (self.arrays if names is None else names)]
        return dict(sorted({row: why for rows in found for row, why in rows.items()}.items()))

    def record(self, name: str, shard: int) -> CommitRecord | None:
        """The commit of a shard of an array, if there is one; IntegrityError (exit 4) if it is not about this plan."""
        generation = self.plan.generation_of(name, shard)
        found = self.logs[generation].get(shard)
        if found is not None:
            require_ours(self._folder, self.plan, self.ids, found, generation, self._believe_plan)
        return found

    @property
    def projector(self) -> ProjectorState | None:
        """The projector's weights, None where the model's could not be reached."""
        with damage(self._folder / FEATURES / PROJECTOR):
            group = self._features
            if PROJECTOR not in group:
                return None
            weights = subgroup(group, PROJECTOR)
            arrays = dict(weights.arrays())
            attributes: dict[str, Any] = dict(weights.attrs)
            dtypes: dict[str, Any] = {name: array.attrs["logical_dtype"] for name, array in arrays.items()}
            values = {name: np.asarray(array[...]) for name, array in arrays.items()}
            absent = [name for name, value in values.items() if holds_fill(value, dtypes[name])]
            if absent:
                raise ValueError(f"chunks of {', '.join(absent)} are missing")
        return ProjectorState(str(attributes["kind"]), attributes["config"], values, dtypes, str(attributes["sha256"]))

    def require(self, names: Iterable[str]) -> None:
        """Raise StoreMissing (exit 5) unless every array is in the store."""
        absent = [name for name in names if name not in self.arrays]
        if absent:
            raise StoreMissing(
                f"expected the arrays {', '.join(absent)} in {self.path}, it has {', '.join(self.arrays)}: "
                f"{how_to_add(absent, self.plan)}"
            )

    def require_complete(self, names: Iterable[str], rows: Iterable[int]) -> None:
        """Raise StoreMissing (exit 5) unless all `rows` of some arrays are committed."""
        wanted = {row // self.plan.shard_images for row in rows}
        missing = {(name, shard) for name in names for shard in wanted if not self._is_committed(name, shard)}
        if missing:
            shards, late = {shard for _, shard in missing}, {name for name, _ in missing}
            raise StoreMissing(
                f"{len(shards)} of {self.plan.n_shards} shards in {self.path} are not extracted yet: "
                f"run {self._maker(late)} to go on"
            )

    def gather(self, name: str, rows: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows of an array as (row, *shape) in storage dtype (bfloat16 as uint16), into `out` if it is given.

        Raises RowUnavailable (exit 4) for rows that failed or are not committed, IntegrityError (exit 4) for bytes
        that are not those that were committed.
        """
        spec = self.arrays[name]
        if out is None:
            out = self._recycled.empty((len(rows), *spec.shape), spec.storage)
        for shard in {row // self.plan.shard_images for row in rows}:
            if (file := self._files.get((name, shard))) is not None:
                file.require_uncut()
        if self._pool is None:
            for place, row in enumerate(rows):
                self._read(name, row, out[place])
        else:
            list(self._pool.map(self._read, [name] * len(rows), rows, out))
        return out

    def will_need(self, name: str, rows: Iterable[int]) -> None:
        """Let the operating system fetch rows that are read soon; what cannot be read is said when it is."""
        for row in rows:
            shard, inside = divmod(row, self.plan.shard_images)
            with suppress(IntegrityError, RowUnavailable):
                file = self._file(name, shard, row)
                if inside < file.rows and row not in self._failed_of(name):
                    file.will_need(inside)

    def stream(self, names: Sequence[str], batches: Iterable[Sequence[int]]) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows of each batch by array, read ahead by a thread, in fresh arrays."""

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
            with self._remote.naming(), damage(self._folder / FEATURES / name):
                return RemoteShard(self._remote, layout, record, rows, repair)
        if self._access == "zarr" or record.codec != "none":
            with damage(self._folder / FEATURES / name):
                return LocalZarrShard(_array(self._features, name), path, layout, rows, record, repair)
        kind: type[StoredShard] = PositionalShard if self._access == "preadv" else MappedShard
        file = kind(path, layout, len(rows), record, repair, self._sealed.get((name, shard)), self._verify)
        self._sealed[name, shard] = file.sealed  # outlives the file's turn among the open ones
        return file

    def _failed_of(self, name: str) -> Mapping[int, str]:
        """Rows that one array lacks; what the log of another generation says is about other arrays of those rows."""
        if name not in self._failed:
            self._failed[name] = {
                row: why
                for generation, log in enumerate(self.logs)
                for row, why in log.failures.items()
                if self.plan.generation_of(name, row // self.plan.shard_images) == generation
            }
        return self._failed[name]

    def _is_committed(self, name: str, shard: int) -> bool:
        return shard in self.logs[self.plan.generation_of(name, shard)]

    def _require_own_logs(self) -> None:
        """Refuse logs that were written for other plans; what else a record says is compared when it is used."""
        for generation, log in enumerate(self.logs):
            if not self._believe_plan and log.plan_digests - {self.plan.digest_of(generation)}:
                for record in log.values():
                    require_ours(self._folder, self.plan, self.ids, record, generation, self._believe_plan)
            if log and not 0 <= min(log) <= max(log) < self.plan.n_shards:
                raise IntegrityError(
                    f"the commit log of {self.path} is about other images than the plan's: restore both"
                )

    def _no_such_row(self, row: int) -> RowUnavailable:
        return RowUnavailable(
            f"expected a row of an image, below {self.plan.n_rows}, got {row}: there is no such image"
        )

    def _maker(self, names: Collection[str]) -> str:
        """The command that makes some arrays."""
        commands = {f"`python -m store derive {one} {self.path}`" for one in names if one in self.plan.derived}
        return " and ".join([*(["`make extract`"] if len(commands) < len({*names}) else []), *sorted(commands)])

    def _repair(self, name: str, shard: int) -> str:
        if self._remote is not None:
            return f"copy the files of shard {shard} to {self.path} again"
        if self.codec != "none":
            return f"{self.path} is an archive, make another of its store"
        return f"`python -m store repair {self.path}` withdraws shard {shard}, {self._maker([name])} computes it again"

    def _named(self, row: int) -> str:
        return ", ".join(self.ids.names(row)[:_SHOWN])


def max_open_files() -> int:
    """Shard files that are kept open at a time: half of what this process may, as each map holds a descriptor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(soft, 4096) // 2)


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise ValueError(f"expected the array {name}, found a group")
    return found
