"""The plan of a store is written first and never changed; which row lies in which shard follows from the plan alone.

A store that grows gets another plan, called a generation, which repeats what the earlier plans say and what is new. New images
begin a new shard, and a new array adds files to every shard; existing files and plans stay as they are.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from configs.errors import EXTRACT
from configs.files.atomic import write_atomically
from store.errors import IntegrityError, StoreMissing
from store.files.disk import Unreadable, content, listed, numbered
from store.layout.fingerprint import Fingerprint
from store.layout.geometry import Geometry
from store.layout.schema import ArraySpec, ShardLayout

PLAN = "plans/0.json"
"""Path of the first generation's plan in a store."""
SPARE = ".spare"
"""Ends the names of spare copies of plans and manifests."""
_DIGEST_BYTES = 64
"""Characters of a digest in a plan: the least by which each earlier generation lengthens a plan's file."""
FEATURES = "features.zarr"
"""The Zarr group in a store."""
CONFIG = "config.yaml"
"""The resolved config of the extraction, in a store."""


class Segment(BaseModel):
    """The images that one generation added: consecutive rows that begin at a shard boundary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    generation: int
    first_row: int
    n_images: int


class Plan(BaseModel):
    """Everything about a store except its rows: arrays, fingerprints, geometry, and where the images lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    generation: int = 0
    earlier: tuple[str, ...] = ()
    """Digests of the plans of all earlier generations, in order."""
    n_images: int
    segments: tuple[Segment, ...] = ()
    """Where the images lie, if images were appended. If this is empty, the images are the rows from 0 on."""
    shard_images: int
    """Images per shard, the same for every array."""
    arrays: tuple[ArraySpec, ...]
    added: dict[str, int] = {}
    """The generation that added an array, for each array that the first generation did not have."""
    derived: tuple[str, ...] = ()
    """Arrays that were computed from other arrays of the store. They are committed apart from the tower's arrays: the log of
    the generation that added a derived array holds its commits of every shard, even of shards that were appended later."""
    fingerprints: dict[str, Fingerprint]
    """What each array was made by."""
    geometry: Geometry
    identity: Literal["content", "name"]
    """Whether an id is the sha256 of the image file's bytes, or only of its name."""
    ids_group: str = "ids"
    """The group of `features.zarr` that holds ids and names of the images."""
    ids_digest: str
    """sha256 over the ids and names of all rows."""
    notes: tuple[str, ...] = ()
    """Sentences for the user that say what could not be stored, and why."""
    maker: Literal["extract", "teach"] = Field(default="extract", exclude_if=lambda maker: maker == "extract")
    """The command that computes the rows; those of `teach` are answer tokens or questions instead of images."""

    @property
    def parts(self) -> tuple[Segment, ...]:
        """The segments of the store: one segment with all images if none were appended."""
        return self.segments or _only_part(self.n_images)

    @property
    def n_rows(self) -> int:
        """Length of every array: the images, and the unused rows between two segments."""
        return self.parts[-1].first_row + self.parts[-1].n_images

    @property
    def n_shards(self) -> int:
        """Number of shards, the same for every array."""
        return math.ceil(self.n_rows / self.shard_images)

    def rows(self, shard: int) -> range:
        """Return the rows of a shard. They depend on the plan alone, not on the number of workers."""
        if not 0 <= shard < self.n_shards:
            raise ValueError(f"expected a shard of 0..{self.n_shards - 1}, got {shard}")
        first = shard * self.shard_images
        segment = self.segment_of(first)
        return range(first, min(first + self.shard_images, segment.first_row + segment.n_images))

    def generation_of(self, name: str, shard: int) -> int:
        """Return the generation whose log holds the commit of a shard of an array."""
        added = self.added.get(name, 0)
        return added if name in self.derived else max(added, self.segment_of(shard * self.shard_images).generation)

    def arrays_of(self, generation: int, shard: int) -> tuple[ArraySpec, ...]:
        """Return the arrays that a generation adds to a shard."""
        return tuple(spec for spec in self.arrays if self.generation_of(spec.name, shard) == generation)

    def shards_of(self, generation: int) -> Iterator[int]:
        """Iterate over the shards to which a generation adds at least one array."""
        for segment in self.parts:
            first = segment.first_row // self.shard_images
            if self.arrays_of(generation, first):
                yield from range(first, first + math.ceil(segment.n_images / self.shard_images))

    def flattened(self) -> "Plan":
        """Return this plan as a first generation, for a copy of the store, which has no earlier plans."""
        segments = tuple(segment.model_copy(update={"generation": 0}) for segment in self.segments)
        first = {"generation": 0, "earlier": (), "added": dict[str, int](), "derived": (), "ids_group": "ids"}
        return self.model_copy(update=first | {"segments": segments})

    def digest_of(self, generation: int) -> str:
        """Return the digest of the plan of this or an earlier generation."""
        return self.digest if generation == self.generation else self.earlier[generation]

    def segment_of(self, row: int) -> Segment:
        """Return the segment in which a row lies."""
        return self.parts[bisect_right(self.parts, row, key=lambda part: part.first_row) - 1]

    def layout(self, name: str) -> ShardLayout:
        """Return the byte layout of one array's shards, uncompressed."""
        return ShardLayout(self.array(name), self.shard_images)

    def array(self, name: str) -> ArraySpec:
        """Return the description of one array."""
        return next(spec for spec in self.arrays if spec.name == name)

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards of all arrays together, uncompressed."""
        layouts = [self.layout(spec.name) for spec in self.arrays]
        total = 0
        for segment in self.parts:
            full, rest = divmod(segment.n_images, self.shard_images)
            total += full * sum(layout.file_bytes(self.shard_images) for layout in layouts)
            total += sum(layout.file_bytes(rest) for layout in layouts) if rest else 0
        return total

    def to_json(self) -> str:
        """Return the plan as text, as it lies on the disk."""
        absent = None if self.derived else {"derived"}  # left out, because plans of earlier versions lack the field
        return self.model_dump_json(indent=1, exclude=absent) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of the whole plan; commit records hold it to say which plan they were written for."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@lru_cache(8)  # called for every shard
def _only_part(n_images: int) -> tuple[Segment, ...]:
    return (Segment(generation=0, first_row=0, n_images=n_images),)


def plan_path(store: Path, generation: int) -> Path:
    """Return the path of a generation's plan."""
    return store / f"plans/{generation}.json"


def write_plan(store: Path, plan: Plan) -> None:
    """Write the plan, which makes it the plan of the store, then write its spare."""
    path = plan_path(store, plan.generation)
    write_atomically(path, plan.to_json())
    write_atomically(spare_of(path), plan.to_json())


def spare_of(path: Path) -> Path:
    """Return the path of the spare copy of a file in `plans/`: a few kB without which a store could not be read."""
    return path.with_name(path.name + SPARE)


def newest_generation(store: Path) -> int | None:
    """Find the newest generation that has a plan or a spare in a store; None if there is no store.

    A tool may have made a file such as `99999999.json`. So a generation counts only if enough files lie there to be its earlier
    plans, or if its file is long enough to hold the digest of every earlier plan. Raises IntegrityError (exit 4) if the
    folder of the plans cannot be read.
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
    """Read the newest plan of a store.

    Raises:
        StoreMissing: there is no store (exit 5).
        IntegrityError: the plan is missing, damaged, or the plan of another generation (exit 4).
    """
    newest = newest_generation(store)
    if newest is None:
        instead = f"name the folder of a store, or make one there with {EXTRACT}"
        if newest_generation(store / "store") is not None:  # `store` is a run folder
            instead = f"did you mean {store / 'store'}?"
        raise StoreMissing(f"expected a feature store at {store}, there is none: {instead}")
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
    """Read the plan in a file. Raises IntegrityError (exit 4), which ends with `advice`, if the file holds no plan."""
    no_plan = f"{path} is not a plan of store format 1"
    try:
        return Plan.model_validate_json(content(path).decode())
    except FileNotFoundError:
        raise IntegrityError(f"expected the plan {path}, it is missing: {advice}") from None
    except Unreadable as error:
        raise IntegrityError(f"{error}: {advice}") from None
    except UnicodeDecodeError:
        raise IntegrityError(f"{no_plan} (not utf-8): {advice}") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(f"{no_plan} ({where}: {first['msg']}): {advice}") from None
