"""The plan of a store: written first, never changed; which row is in which shard follows from it alone.

A store that grows gets another plan, a generation, which says what the ones before said and what it adds. Adding images
begins a new shard, adding an array adds files to every shard; files and plans that are there stay as they are.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.files.atomic import write_atomically
from store.errors import IntegrityError, StoreMissing
from store.files.disk import Unreadable, content, listed, numbered
from store.layout.fingerprint import Fingerprint
from store.layout.geometry import Geometry
from store.layout.schema import ArraySpec, Layout

PLAN = "plans/0.json"
"""Of the first generation."""
SPARE = ".spare"
_DIGEST_BYTES = 64
"""Length of a digest in a plan."""
FEATURES = "features.zarr"
"""The Zarr group."""
CONFIG = "config.yaml"
"""The resolved config of the extraction."""


class Segment(BaseModel):
    """Images that one generation added: consecutive rows from a shard boundary on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int
    first_row: int
    n_images: int


class Plan(BaseModel):
    """Everything about a store but its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    generation: int = 0
    earlier: tuple[str, ...] = ()
    """Digests of the plans of earlier generations."""
    n_images: int
    segments: tuple[Segment, ...] = ()
    """Where the images lie, if some were appended; otherwise they are the rows from 0 on."""
    shard_images: int
    """Images per shard, of every array."""
    arrays: tuple[ArraySpec, ...]
    added: dict[str, int] = {}
    """Generation that added an array, for those that were not there from the beginning."""
    derived: tuple[str, ...] = ()
    """Arrays that were made from others in the store. They are committed apart from what a tower makes: of every shard,
    appended ones too, in the log of the generation that added them."""
    fingerprints: dict[str, Fingerprint]
    """By array."""
    geometry: Geometry
    identity: Literal["content", "name"]
    """What the ids are a sha256 of: an image file's bytes, or only its name."""
    ids_group: str = "ids"
    """The group of `features.zarr` that names the images."""
    ids_digest: str
    """sha256 over all rows' ids and names."""
    notes: tuple[str, ...] = ()
    """What could not be stored, and why."""

    @property
    def parts(self) -> tuple[Segment, ...]:
        """Where the images lie."""
        return self.segments or _only_part(self.n_images)

    @property
    def n_rows(self) -> int:
        """Length of every array: the images, and the rows between an appended segment and the one before it."""
        return self.parts[-1].first_row + self.parts[-1].n_images

    @property
    def n_shards(self) -> int:
        """Shards of every array."""
        return math.ceil(self.n_rows / self.shard_images)

    def rows(self, shard: int) -> range:
        """Rows of a shard: a pure function of the plan, whoever works on it."""
        if not 0 <= shard < self.n_shards:
            raise ValueError(f"expected a shard of 0..{self.n_shards - 1}, got {shard}")
        first = shard * self.shard_images
        segment = self._segment(first)
        return range(first, min(first + self.shard_images, segment.first_row + segment.n_images))

    def generation_of(self, name: str, shard: int) -> int:
        """The generation whose commit log says whether a shard of an array is there."""
        added = self.added.get(name, 0)
        return added if name in self.derived else max(added, self._segment(shard * self.shard_images).generation)

    def arrays_of(self, generation: int, shard: int) -> tuple[ArraySpec, ...]:
        """What a generation adds to a shard."""
        return tuple(spec for spec in self.arrays if self.generation_of(spec.name, shard) == generation)

    def shards_of(self, generation: int) -> Iterator[int]:
        """Shards to which a generation adds something."""
        for segment in self.parts:
            first = segment.first_row // self.shard_images
            if self.arrays_of(generation, first):
                yield from range(first, first + math.ceil(segment.n_images / self.shard_images))

    def flattened(self) -> "Plan":
        """As a first generation: for a copy, which has no past."""
        segments = tuple(segment.model_copy(update={"generation": 0}) for segment in self.segments)
        return Plan(
            n_images=self.n_images,
            segments=segments,
            shard_images=self.shard_images,
            arrays=self.arrays,
            fingerprints=self.fingerprints,
            geometry=self.geometry,
            identity=self.identity,
            ids_digest=self.ids_digest,
            notes=self.notes,
        )

    def digest_of(self, generation: int) -> str:
        """The digest of the plan of a generation up to this one."""
        return self.digest if generation == self.generation else self.earlier[generation]

    def _segment(self, row: int) -> Segment:
        return self.parts[bisect_right(self.parts, row, key=lambda part: part.first_row) - 1]

    def layout(self, name: str) -> Layout:
        """The byte layout of one array's shards."""
        return Layout(self.array(name), self.shard_images)

    def array(self, name: str) -> ArraySpec:
        """One array's description."""
        return next(spec for spec in self.arrays if spec.name == name)

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards together."""
        layouts = [self.layout(spec.name) for spec in self.arrays]
        total = 0
        for segment in self.parts:
            full, rest = divmod(segment.n_images, self.shard_images)
            total += full * sum(layout.file_bytes(self.shard_images) for layout in layouts)
            total += sum(layout.file_bytes(rest) for layout in layouts) if rest else 0
        return total

    def to_json(self) -> str:
        """As it lies on disk."""
        absent = None if self.derived else {"derived"}  # not in plans that were written before there was such a thing
        return self.model_dump_json(indent=1, exclude=absent) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of all of it: what a commit record says it was written for."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@lru_cache(8)  # asked for with every shard
def _only_part(n_images: int) -> tuple[Segment, ...]:
    return (Segment(generation=0, first_row=0, n_images=n_images),)


def plan_path(store: Path, generation: int) -> Path:
    """Where the plan of a generation lies."""
    return store / f"plans/{generation}.json"


def write_plan(store: Path, plan: Plan) -> None:
    """Let a plan be the store's, then keep its spare."""
    path = plan_path(store, plan.generation)
    write_atomically(path, plan.to_json())
    write_atomically(spare_of(path), plan.to_json())


def spare_of(path: Path) -> Path:
    """Where the spare of a file in `plans/` lies: a few kB without which a store could not be read."""
    return path.with_name(path.name + SPARE)


def newest_generation(store: Path) -> int | None:
    """The generation that a store has come to, None where there is no store; a lost plan still has its spare.

    A plan names all earlier ones, so a number is believed if so many plans are there, or if its file is that long: anyone
    can call a file `99999999.json`. IntegrityError (exit 4) if the folder of the plans cannot be read.
    """
    if not store.is_dir():
        return None
    sizes: dict[int, int] = {}
    for path in listed((store / PLAN).parent):
        if (number := numbered(path.name.removesuffix(SPARE))) is not None:
            sizes[number] = max(sizes.get(number, 0), path.lstat().st_size)
    believed = [number for number, size in sizes.items() if number <= len(sizes) or size >= number * _DIGEST_BYTES]
    return max(believed, default=None)


def read_plan(store: Path) -> Plan:
    """The newest plan of the store at `store`; StoreMissing (exit 5) if there is none, IntegrityError (exit 4)."""
    newest = newest_generation(store)
    if newest is None:
        raise StoreMissing(
            f"expected a feature store at {store}, there is none: run `make extract` with this config first"
        )
    path = plan_path(store, newest)
    advice = "restore it, or extract anew"
    if spare_of(path).is_file():
        advice = f"let `python -m store repair {store}` restore it from its spare"
    plan = read_plan_file(path, advice)
    if (plan.generation, len(plan.earlier)) != (newest, newest):
        if not spare_of(path).is_file():
            advice = f"remove it if the store has no generation {newest}, otherwise restore it"
        raise IntegrityError(f"{path} is the plan of another generation, {plan.generation}: {advice}")
    return plan


def read_plan_file(path: Path, advice: str) -> Plan:
    """The plan in a file; IntegrityError (exit 4), with `advice`, if it holds none."""
    not_one = f"{path} is not a plan of store format 1"
    try:
        return Plan.model_validate_json(content(path).decode())
    except FileNotFoundError:
        raise IntegrityError(f"expected the plan {path}, it is missing: {advice}") from None
    except Unreadable as error:
        raise IntegrityError(f"{error}: {advice}") from None
    except UnicodeDecodeError:
        raise IntegrityError(f"{not_one} (not utf-8): {advice}") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(f"{not_one} ({where}: {first['msg']}): {advice}") from None
