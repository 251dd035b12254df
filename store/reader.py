# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Reading a store: only what the log says is committed, checked the first time it is read, at memory speed."""

import resource
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from store.commits import CommitRecord, read_commits
from store.errors import IntegrityError, RowUnavailable, StoreMissing
from store.fingerprint import Fingerprint
from store.ids import GROUP as IDS
from store.ids import ImageIds
from store.manifest import HEAL, read_manifest
from store.plan import PLAN, Plan, read_plan
from store.prefetch import prefetched
from store.schema import ArraySpec, Dtype, holds_fill
from store.shard_file import MappedShard, PositionalShard, ShardFile, Verify

FEATURES = "features.zarr"
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


class FeatureStore:
    """A store, open for reading.

    >>> store = FeatureStore.open(Path("runs/demo/store"))  # doctest: +SKIP
    >>> store.gather("raw", [0, 1]).shape  # doctest: +SKIP
    (2, 576, 96)
    """

    def __init__(
        self, path: Path, plan: Plan, commits: Mapping[int, CommitRecord], ids: ImageIds, features: zarr.Group,
        verify: Verify, access: Access,
    ) -> None:  # fmt: skip
        self.path, self.plan, self.commits, self.ids = path, plan, commits, ids
        self.arrays: dict[str, ArraySpec] = {spec.name: spec for spec in plan.arrays}
        self.failures: dict[int, str] = {row: why for c in commits.values() for row, why in c.failures.items()}
        self._features = features
        self._verify: Verify = verify
        self._access: Access = access
        self._files: OrderedDict[tuple[str, int], ShardFile] = OrderedDict()
        self._verified: dict[tuple[str, int], NDArray[np.bool_]] = {}
        self._max_files = max_open_files()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READ_THREADS, "read") if access == "preadv" else None

    @classmethod
    def open(
        cls, path: Path, believe_plan: bool = False, verify: Verify = "first-read", access: Access = "mmap"
    ) -> "FeatureStore":
        """Read plan, log and ids; raises StoreMissing (exit 5) or IntegrityError (exit 4).

        `believe_plan` opens a store whose plan was changed after its shards were committed, to look into it.
        """
        plan = read_plan(path)
        features = open_features(path)
        if not believe_plan:
            _require_metadata(path, plan)
        ids = stored_ids(path, plan)
        commits = read_commits(path)
        for record in commits.values():
            require_ours(path, plan, ids, record, believe_plan)
        return cls(path, plan, commits, ids, features, verify, access)

    def fingerprint(self, name: str) -> Fingerprint:
        """What made an array."""
        return self.plan.fingerprints[name]

    @property
    def committed_rows(self) -> list[int]:
        """Rows of committed shards, failed ones included."""
        return [row for shard in self.commits for row in self.plan.rows(shard)]

    @property
    def missing_shards(self) -> list[int]:
        """Shards that are not committed."""
        return [shard for shard in range(self.plan.n_shards) if shard not in self.commits]

    @property
    def projector(self) -> ProjectorState | None:
        """The projector's weights, None where the model's could not be reached."""
        with _damage(self.path / FEATURES / PROJECTOR):
            group = self._features
            if PROJECTOR not in group:
                return None
            weights = _subgroup(group, PROJECTOR)
            arrays = dict(weights.arrays())
            attributes: dict[str, Any] = dict(weights.attrs)
            dtypes: dict[str, Any] = {name: array.attrs["logical_dtype"] for name, array in arrays.items()}
            values = {name: np.asarray(array[...]) for name, array in arrays.items()}
            absent = [name for name, value in values.items() if holds_fill(value, dtypes[name])]
            if absent:
                raise ValueError(f"chunks of {', '.join(absent)} are missing")
        return ProjectorState(str(attributes["kind"]), attributes["config"], values, dtypes)

    def require(self, names: Iterable[str]) -> None:
        """Raise StoreMissing (exit 5) unless every array is in the store."""
        absent = [name for name in names if name not in self.arrays]
        if absent:
            raise StoreMissing(
                f"expected the arrays {', '.join(absent)} in {self.path}, it has {', '.join(self.arrays)}: "
                "add them to store.arrays and extract into a new store"
            )

    def require_complete(self, rows: Iterable[int]) -> None:
        """Raise StoreMissing (exit 5) unless the shards of all `rows` are committed."""
        shards = {row // self.plan.shard_images for row in rows} - self.commits.keys()
        if shards:
            raise StoreMissing(
                f"{len(shards)} of {self.plan.n_shards} shards in {self.path} are not extracted yet: "
                "run `make extract` with this config to go on"
            )

    def gather(self, name: str, rows: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Rows of an array as (row, *shape) in storage dtype (bfloat16 as uint16), into `out` if it is given.

        Raises RowUnavailable (exit 4) for rows that failed or are not committed, IntegrityError (exit 4) for bytes
        that are not those that were committed.
        """
        spec = self.arrays[name]
        if out is None:
            out = np.empty((len(rows), *spec.shape), spec.storage)
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
            if self._access == "zarr" or shard not in self.commits or row in self.failures:
                continue
            with suppress(IntegrityError):
                self._file(name, shard).will_need(inside)

    def stream(self, names: Sequence[str], batches: Iterable[Sequence[int]]) -> Iterator[dict[str, NDArray[Any]]]:
        """The rows of each batch by array, read ahead by a thread, in fresh arrays."""

        def read(rows: Sequence[int]) -> dict[str, NDArray[Any]]:
            return {name: self.gather(name, rows) for name in names}

        def announce(rows: Sequence[int]) -> None:
            for name in names:
                self.will_need(name, rows)

        return prefetched(batches, read, announce=announce)

    def _read(self, name: str, row: int, out: NDArray[Any]) -> None:
        if not 0 <= row < self.plan.n_images:
            raise RowUnavailable(f"expected a row of 0..{self.plan.n_images - 1}, got {row}: there is no such image")
        if row in self.failures:
            raise RowUnavailable(f"row {row} ({self._named(row)}) could not be encoded: {self.failures[row]}")
        shard, inside = divmod(row, self.plan.shard_images)
        if shard not in self.commits:
            raise RowUnavailable(f"row {row} ({self._named(row)}) is not committed yet: run `make extract` to go on")
        if self._access == "zarr" or self.commits[shard].files[name].codec != "none":
            self._read_through_zarr(name, row, out)
        else:
            self._file(name, shard).read(inside, out)

    def _read_through_zarr(self, name: str, row: int, out: NDArray[Any]) -> None:
        """What cannot be mapped; a chunk that is not there reads as fill, which committed rows never hold."""
        with _damage(self.path / FEATURES / name):
            np.copyto(out, np.asarray(_array(self._features, name)[row]))
            if holds_fill(out, self.arrays[name].dtype):
                raise ValueError(f"row {row} is missing; {self._repair(row // self.plan.shard_images)}")

    def _file(self, name: str, shard: int) -> ShardFile:
        key = (name, shard)
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
                return self._files[key]
        record, layout = self.commits[shard].files[name], self.plan.layout(name)
        rows = len(self.plan.rows(shard))
        verified = self._verified.setdefault(key, np.zeros(rows if layout.spec.per_image_chunks else 1, bool))
        kind: type[ShardFile] = PositionalShard if self._access == "preadv" else MappedShard
        path = self.path / FEATURES / record.path
        opened = kind(path, layout, rows, record, self._repair(shard), verified, self._verify)
        with self._lock:
            self._files[key] = opened
            if len(self._files) > self._max_files:
                self._files.popitem(last=False)
        return opened

    def _repair(self, shard: int) -> str:
        return f"`python -m store repair {self.path}` withdraws shard {shard}, and `make extract` computes it again"

    def _named(self, row: int) -> str:
        return ", ".join(self.ids.names(row)[:_SHOWN])


def max_open_files() -> int:
    """Shard files that are kept open at a time: half of what this process may, as each map holds a descriptor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(soft, 4096) // 2)


def open_features(path: Path) -> zarr.Group:
    """The plain Zarr group of a store."""
    folder = path / FEATURES
    if not folder.is_dir():
        raise StoreMissing(f"{path} has a plan but no {FEATURES} yet: run `make extract` to go on")
    with _damage(folder):
        return zarr.open_group(folder, mode="r")


def stored_ids(path: Path, plan: Plan) -> ImageIds:
    """The ids of a store; IntegrityError (exit 4) if they are damaged, or not those of the plan."""
    with _damage(path / FEATURES / IDS):
        ids = ImageIds.read(_subgroup(open_features(path), IDS))
    if len(ids) != plan.n_images or ids.digest() != plan.ids_digest:
        raise IntegrityError(f"the ids in {path / FEATURES / IDS} are not those of the plan: {HEAL}")
    return ids


def _require_metadata(path: Path, plan: Plan) -> None:
    """Refuse a `zarr.json` that is not as it was written: nothing in it is checked otherwise."""
    damaged = read_manifest(path, plan.generation).damaged(path / FEATURES, metadata_only=True)
    if damaged:
        raise IntegrityError(f"{path / FEATURES / damaged[0]} is damaged or missing: {HEAL}")


def require_ours(path: Path, plan: Plan, ids: ImageIds, record: CommitRecord, believe_plan: bool) -> None:
    """Refuse a commit record that is about something else than the plan."""
    rows = plan.rows(record.shard) if 0 <= record.shard < plan.n_shards else range(0)
    paths = {spec.name: plan.layout(spec.name).relative_path(record.shard) for spec in plan.arrays}
    where = f"commit {record.shard} of {path}"
    if (record.first_row, record.last_row) != (rows.start, rows.stop - 1) or record.ids_digest != ids.digest(rows):
        raise IntegrityError(f"{where} is about other images than the plan's: remove it and run `make extract`")
    if record.plan_digest != plan.digest and not believe_plan:
        raise IntegrityError(
            f"{where} was made for another plan: {path / PLAN} was changed since; restore it, or let "
            f"`python -m stage1_extract diagnose {path}` say what the store holds"
        )
    if {name: file.path for name, file in record.files.items()} != paths:
        raise IntegrityError(f"{where} names other files than the plan's: remove it and run `make extract`")


@contextmanager
def _damage(folder: Path) -> Generator[None, None, None]:
    """What zarr raises on damaged bytes or metadata, said as an IntegrityError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise IntegrityError(f"{folder} is damaged ({said}): restore it, or extract anew") from None


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise ValueError(f"expected the array {name}, found a group")
    return found


def _subgroup(group: zarr.Group, name: str) -> zarr.Group:
    found = group[name]
    if not isinstance(found, zarr.Group):
        raise IntegrityError(f"expected the group {name} in {group.store_path}, found an array: restore the store")
    return found
