"""The plan of a store: written first, never changed; which row is in which shard follows from it alone."""

import hashlib
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from store.errors import IntegrityError, StoreMissing
from store.fingerprint import Fingerprint
from store.schema import ArraySpec, Layout

PLAN = "plans/0.json"


class Geometry(BaseModel):
    """The patches of one image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: tuple[int, int]
    """Rows and columns of patches."""
    has_cls: bool
    """Whether the tower puts a CLS row before the patches."""
    tokens: int
    """Visual tokens per image that the language model gets: the patches, and the CLS row under `full`."""


class Plan(BaseModel):
    """Everything about a store but its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    generation: int = 0
    n_images: int
    shard_images: int
    """Images per shard, of every array."""
    arrays: tuple[ArraySpec, ...]
    fingerprints: dict[str, Fingerprint]
    """By array."""
    geometry: Geometry
    identity: Literal["content", "name"]
    """What the ids are a sha256 of: an image file's bytes, or only its name."""
    ids_digest: str
    """sha256 over all rows' ids and names."""
    notes: tuple[str, ...] = ()
    """What could not be stored, and why."""

    @property
    def n_shards(self) -> int:
        """Shards of every array."""
        return math.ceil(self.n_images / self.shard_images)

    def rows(self, shard: int) -> range:
        """Rows of a shard: a pure function of the plan, whoever works on it."""
        if not 0 <= shard < self.n_shards:
            raise ValueError(f"expected a shard of 0..{self.n_shards - 1}, got {shard}")
        first = shard * self.shard_images
        return range(first, min(first + self.shard_images, self.n_images))

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
        full, rest = divmod(self.n_images, self.shard_images)
        last = sum(layout.file_bytes(rest) for layout in layouts) if rest else 0
        return full * sum(layout.file_bytes(self.shard_images) for layout in layouts) + last

    def to_json(self) -> str:
        """As it lies on disk."""
        return self.model_dump_json(indent=1) + "\n"

    @property
    def digest(self) -> str:
        """sha256 of all of it: what a commit record says it was written for."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def read_plan(store: Path) -> Plan:
    """The plan of the store at `store`; StoreMissing (exit 5) if there is none."""
    path = store / PLAN
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissing(
            f"expected a feature store at {store}, there is none: run `make extract` with this config first"
        ) from None
    except UnicodeDecodeError:
        raise IntegrityError(
            f"{path} is not a plan of store format 1 (not utf-8): restore it, or extract anew"
        ) from None
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise IntegrityError(
            f"{path} is not a plan of store format 1 ({where}: {first['msg']}): restore it, or extract anew"
        ) from None
