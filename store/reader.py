# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Reading a store: only what the log says is committed, checked the first time it is read, at memory speed."""

from collections import OrderedDict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from store.commits import CommitRecord, read_commits
from store.errors import IntegrityError, RowUnavailable, StoreMissing
from store.fingerprint import Fingerprint
from store.ids import GROUP as IDS
from store.ids import ImageIds
from store.plan import PLAN, Plan, read_plan
from store.schema import ArraySpec, Dtype, Layout, holds_fill
from store.shard import FileRecord, crc

FEATURES = "features.zarr"
PROJECTOR = "projector"
MAX_MAPS = 32
"""Files mapped at a time: each map holds a file descriptor."""
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


class MappedShard:
    """One committed file of one array, memory-mapped; each chunk's checksum is verified when it is first read."""

    def __init__(self, path: Path, layout: Layout, rows: int, record: FileRecord, repair: str) -> None:
        self._path, self._repair = path, repair
        size = path.stat().st_size if path.is_file() else None
        # A map of a truncated file is a SIGBUS, not an error: sizes are compared before mapping.
        if size != record.bytes or size != layout.file_bytes(rows):
            raise IntegrityError(
                f"expected {path} with {record.bytes:,} bytes as committed, "
                f"found {'no such file' if size is None else f'{size:,} bytes'}: {repair}"
            )
        spec = layout.spec
        per_chunk = 1 if spec.per_image_chunks else layout.shard_images
        chunk = np.dtype([("rows", spec.storage, (per_chunk, *spec.shape)), ("crc", "<u4")])
        self._chunks = np.memmap(path, chunk, "r", shape=(rows if spec.per_image_chunks else 1,))
        self._per_chunk = per_chunk
        self._verified = np.zeros(len(self._chunks), bool)

    def row(self, place: int) -> NDArray[Any]:
        """The row at `place` in this shard: a view of the map."""
        chunk, inside = divmod(place, self._per_chunk)
        rows = self._chunks["rows"][chunk]
        if not self._verified[chunk]:
            if crc(rows) != int(self._chunks["crc"][chunk]):
                raise IntegrityError(f"{self._path} is damaged (checksum of row {place}): {self._repair}")
            self._verified[chunk] = True
        return rows[inside]


class FeatureStore:
    """A store, open for reading.

    >>> store = FeatureStore.open(Path("runs/demo/store"))  # doctest: +SKIP
    >>> store.gather("raw", [0, 1]).shape  # doctest: +SKIP
    (2, 576, 96)
    """

    def __init__(self, path: Path, plan: Plan, commits: dict[int, CommitRecord], ids: ImageIds) -> None:
        self.path, self.plan, self.commits, self.ids = path, plan, commits, ids
        self.arrays: dict[str, ArraySpec] = {spec.name: spec for spec in plan.arrays}
        self.failures: dict[int, str] = {row: why for c in commits.values() for row, why in c.failures.items()}
        self._maps: OrderedDict[tuple[str, int], MappedShard] = OrderedDict()

    @classmethod
    def open(cls, path: Path, believe_plan: bool = False) -> "FeatureStore":
        """Read plan, log and ids; raises StoreMissing (exit 5) or IntegrityError (exit 4).

        `believe_plan` opens a store whose plan was changed after its shards were committed, to look into it.
        """
        plan = read_plan(path)
        with _damage(path / FEATURES / IDS):
            ids = ImageIds.read(_subgroup(open_features(path), IDS))
        if len(ids) != plan.n_images or ids.digest() != plan.ids_digest:
            raise IntegrityError(f"the ids in {path / FEATURES / IDS} are not those of the plan: restore them")
        commits = read_commits(path)
        for record in commits.values():
            _require_ours(path, plan, ids, record, believe_plan)
        return cls(path, plan, commits, ids)

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
            group = open_features(self.path)
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
        for place, row in enumerate(rows):
            shard, inside = divmod(row, self.plan.shard_images)
            np.copyto(out[place], self._shard(name, shard, row).row(inside))
        return out

    def _shard(self, name: str, shard: int, row: int) -> MappedShard:
        if not 0 <= row < self.plan.n_images:
            raise RowUnavailable(f"expected a row of 0..{self.plan.n_images - 1}, got {row}: there is no such image")
        if row in self.failures:
            raise RowUnavailable(f"row {row} ({self._named(row)}) could not be encoded: {self.failures[row]}")
        key = (name, shard)
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        if shard not in self.commits:
            raise RowUnavailable(f"row {row} ({self._named(row)}) is not committed yet: run `make extract` to go on")
        record = self.commits[shard].files[name]
        repair = (
            f"remove {self.path / 'commits' / f'{shard}.json'} and run `make extract`, which computes that shard again"
        )
        path = self.path / FEATURES / record.path
        mapped = MappedShard(path, self.plan.layout(name), len(self.plan.rows(shard)), record, repair)
        self._maps[key] = mapped
        if len(self._maps) > MAX_MAPS:
            self._maps.popitem(last=False)
        return mapped

    def _named(self, row: int) -> str:
        return ", ".join(self.ids.names(row)[:_SHOWN])


def open_features(path: Path) -> zarr.Group:
    """The plain Zarr group of a store."""
    folder = path / FEATURES
    if not folder.is_dir():
        raise StoreMissing(f"{path} has a plan but no {FEATURES} yet: run `make extract` to go on")
    with _damage(folder):
        return zarr.open_group(folder, mode="r")


def _require_ours(path: Path, plan: Plan, ids: ImageIds, record: CommitRecord, believe_plan: bool) -> None:
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


def _subgroup(group: zarr.Group, name: str) -> zarr.Group:
    found = group[name]
    if not isinstance(found, zarr.Group):
        raise IntegrityError(f"expected the group {name} in {group.store_path}, found an array: restore the store")
    return found
