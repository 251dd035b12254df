"""Small stores with known contents: what the tests of this folder write and read."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from numpy.typing import NDArray

from store.layout.fingerprint import Fingerprint
from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, Dtype
from store.layout.tensors import from_storage
from store.reading.projector_state import ProjectorState
from store.writing.writer import StoreWriter

SMALL, LARGE = (3, 5), (160, 210)
"""Shapes below and above 64 kB per image, whatever the dtype."""
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
Rows = dict[str, NDArray[Any]]

quick = settings(max_examples=12, deadline=None, derandomize=True, database=None)


def spec(name: str, shape: tuple[int, ...], dtype: Dtype) -> ArraySpec:
    return ArraySpec(name=name, axes=("patch", "hidden"), shape=shape, dtype=dtype, attributes={"layer": -2})


def small_and_large(dtype: Dtype = "float32") -> tuple[ArraySpec, ...]:
    return spec("small", SMALL, dtype), spec("large", LARGE, dtype)


def image_ids(count: int) -> ImageIds:
    return ImageIds.build([(sha(number), [f"image_{number}.png", f"copy/{number}.png"]) for number in range(count)])


def sha(number: int) -> str:
    return hashlib.sha256(f"image {number}".encode()).hexdigest()


def plan_of(
    ids: ImageIds, arrays: Sequence[ArraySpec] | None = None, shard_images: int = 2, **semantic: Any
) -> Plan:  # fmt: skip
    arrays = tuple(arrays or small_and_large())
    printed = Fingerprint(semantic={"checkpoint": "tiny", "layer": -2} | semantic, numeric={"torch": "2"})
    return Plan(
        n_images=len(ids),
        shard_images=shard_images,
        arrays=arrays,
        fingerprints={one.name: printed for one in arrays},
        geometry=Geometry(grid=(2, 2), has_cls=True, tokens=4),
        identity="content",
        ids_digest=ids.digest(),
        notes=("a store of the tests",),
    )


def values(one: ArraySpec, rows: range, seed: int = 0) -> NDArray[Any]:
    """Finite values of every exponent, a pure function of array, row and seed."""
    drawn = [_row(one, row, seed) for row in rows]
    return np.stack(drawn) if drawn else np.empty((0, *one.shape), one.storage)


def _row(one: ArraySpec, row: int, seed: int) -> NDArray[Any]:
    rng = np.random.default_rng([seed, row, len(one.name), *one.name.encode()])
    bits = rng.integers(0, 2 ** (8 * one.storage.itemsize), one.shape, dtype=f"u{one.storage.itemsize}")
    drawn = bits.view(one.storage)
    if one.dtype == "bfloat16":
        return np.where((drawn & np.uint16(0x7F80)) == 0x7F80, np.uint16(0), drawn)
    return np.where(np.isfinite(drawn), drawn, one.storage.type(0))


def shard_values(plan: Plan, shard: int, seed: int = 0) -> Rows:
    return {one.name: values(one, plan.rows(shard), seed) for one in plan.arrays}


def projector() -> ProjectorState:
    rng = np.random.default_rng(7)
    weights = {
        "linear_1.weight": rng.standard_normal((12, 5)).astype("<f4"),
        "linear_1.bias": rng.integers(0, 2**14, (12,), dtype="<u2"),
    }
    return ProjectorState(
        "llava_mlp",
        {"act": "gelu"},
        weights,
        {"linear_1.weight": "float32", "linear_1.bias": "bfloat16"},
        "of these",
    )


def write_store(
    path: Path,
    plan: Plan,
    ids: ImageIds,
    shards: Collection[int] | None = None,
    failures: Mapping[int, str] | None = None,
) -> Path:
    """Commit `shards` (default: all that are missing) of `values`, with `failures` by row."""
    with StoreWriter.open(path, plan, ids, projector()) as writer:
        for shard in writer.missing_shards() if shards is None else shards:
            failed = {row: why for row, why in (failures or {}).items() if row in plan.rows(shard)}
            writer.commit_shard(shard, shard_values(plan, shard), failed, {"host": "here"})
    return path


def store_of(path: Path, count: int = 5, dtype: Dtype = "float32", shard_images: int = 2, **written: Any) -> Path:
    ids = image_ids(count)
    return write_store(path, plan_of(ids, small_and_large(dtype), shard_images), ids, **written)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def as_floats(stored: NDArray[Any], dtype: Dtype) -> NDArray[Any]:
    return from_storage(np.array(stored), dtype).to(torch.float32).numpy()
