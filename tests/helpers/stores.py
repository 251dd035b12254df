"""Wrong stores: bits flipped under valid checksums, arrays rewritten, fingerprints that lie."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from configs.files.atomic import write_atomically
from store.layout.manifest import make_manifest, write_manifest
from store.layout.plan import FEATURES, PLAN, Plan, read_plan, write_plan
from store.layout.shard import write_shard
from store.log.commits import CommitRecord, read_commits
from store.reading.projector_state import PROJECTOR
from store.reading.reader import FeatureStore

Rows = np.ndarray[Any, Any]


def rewrite(store: Path, changes: Mapping[str, Callable[[Rows], Rows]]) -> None:
    """Change arrays in place; files, checksums and commit records are valid again afterwards."""
    opened = FeatureStore.open(store)
    plan = opened.plan
    for shard, record in read_commits(store).items():
        rows = [row for row in plan.rows(shard) if row not in opened.failed()]
        files = dict(record.files)
        for name, change in changes.items():
            values = np.full(
                (len(plan.rows(shard)), *plan.array(name).shape), plan.array(name).fill, plan.array(name).storage
            )
            values[[row - plan.rows(shard).start for row in rows]] = change(opened.gather(name, rows))
            files[name] = write_shard(store / FEATURES, plan.layout(name), shard, values)
        _save(store, record.model_copy(update={"files": files}))


def flip_bit(store: Path, name: str, row: int = 0, element: int = 0, bit: int = 30) -> None:
    """Flip one bit of one row of an array, with every checksum made valid again."""
    plan = read_plan(store)
    first = plan.rows(row // plan.shard_images).start

    def flip(rows: Rows) -> Rows:
        if first <= row < first + len(rows) and flip.shard == row // plan.shard_images:
            word = rows.reshape(len(rows), -1)[row - first :][:1].view(f"<u{rows.itemsize}")
            word[0, element] ^= np.array(1 << bit, word.dtype)
        flip.shard += 1
        return rows

    flip.shard = 0
    rewrite(store, {name: flip})


def flip_projector_bit(store: Path, weight: str = "linear_1.weight", bit: int = 30) -> None:
    """Flip one bit of one weight of the stored projector."""
    group = zarr.open_group(store / FEATURES / PROJECTOR, mode="r+")
    array = group[weight]
    values = np.array(array[...])
    values.reshape(-1).view(f"<u{values.itemsize}")[:1] ^= np.array(1 << bit, f"<u{values.itemsize}")
    attributes = dict(array.attrs)
    created = group.create_array(
        weight, shape=values.shape, dtype=values.dtype, chunks=values.shape, compressors=[Crc32cCodec()], overwrite=True
    )
    created[...] = values
    created.attrs.update(attributes)
    _remake_manifest(store)


def claim(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let every fingerprint of a store claim something else; `change` edits its semantic part."""
    content = json.loads((store / PLAN).read_text())
    for fingerprint in content["fingerprints"].values():
        change(fingerprint["semantic"])
    _replan(store, Plan.model_validate(content))


def claim_as(store: Path, other: Path) -> None:
    """Give a store the fingerprints of another: now it lies about itself."""
    _replan(store, read_plan(store).model_copy(update={"fingerprints": read_plan(other).fingerprints}))


def copy(store: Path, to: Path) -> Path:
    """A store of its own to break."""
    shutil.copytree(store, to)
    return to


def _remake_manifest(store: Path) -> None:
    plan = read_plan(store)
    made = make_manifest(store / FEATURES, plan.digest, [spec.name for spec in plan.arrays])
    write_manifest(store, plan.generation, made)


def _replan(store: Path, plan: Plan) -> None:
    write_plan(store, plan)
    _remake_manifest(store)
    for record in read_commits(store).values():
        _save(store, record.model_copy(update={"plan_digest": plan.digest}))


def _save(store: Path, record: CommitRecord) -> None:
    write_atomically(store / "commits" / f"{record.shard}.json", record.sealed().model_dump_json(indent=1) + "\n")
