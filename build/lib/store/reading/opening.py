"""What is looked at before a store is believed: its group, its metadata, its ids, and whether a record is about them."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from store.errors import IntegrityError, StoreMissing
from store.files.regular_files import RegularFiles
from store.layout.ids import ImageIds
from store.layout.manifest import HEAL, file_digest, manifest_path, read_manifest
from store.layout.plan import FEATURES, PLAN, Plan
from store.layout.record import CommitRecord
from store.log.compacted import FOLDER as COMMITS


def open_features(path: Path) -> zarr.Group:
    """The plain Zarr group of a store."""
    folder = path / FEATURES
    if not folder.is_dir() and os.path.lexists(path / COMMITS):
        raise IntegrityError(
            f"{folder} is missing though shards of it may be committed: bring it back, if it is on another disk; otherwise "
            f"`python -m store repair {path}` withdraws what is lost, and `make extract` computes it again"
        )
    if not folder.is_dir():
        raise StoreMissing(f"{path} has a plan but no {FEATURES} yet: run `make extract` to go on")
    library: Any = zarr  # typed in part
    with damage(folder):
        return library.open_group(RegularFiles(folder), mode="r")


def stored_ids(path: Path, plan: Plan) -> ImageIds:
    """The ids of a store; IntegrityError (exit 4) if they are damaged, or not those of the plan."""
    folder = path / FEATURES / plan.ids_group
    with damage(folder):
        ids = ImageIds.read(subgroup(open_features(path), plan.ids_group))
    if len(ids) != plan.n_rows or ids.digest() != plan.ids_digest:
        raise IntegrityError(f"the ids in {folder} are not those of the plan: {HEAL}")
    return ids


def require_metadata(path: Path, plan: Plan) -> None:
    """Refuse a `zarr.json` that is not as it was written: nothing in it is checked otherwise.

    For a moment, a store that grows has the metadata of the generation before or of the one to come.
    """
    damaged = read_manifest(path, plan.generation).damaged(path / FEATURES, metadata_only=True)
    if damaged:  # not so if it is growing now
        beside = [one for one in (plan.generation - 1, plan.generation + 1) if manifest_path(path, one).is_file()]
        others = [read_manifest(path, one) for one in beside]
        damaged = [n for n in damaged if file_digest(path / FEATURES / n) not in {o.files.get(n, "") for o in others}]
    if damaged:
        raise IntegrityError(f"{path / FEATURES / damaged[0]} is damaged or missing: {HEAL}")


def require_ours(
    path: Path, plan: Plan, ids: ImageIds, record: CommitRecord, generation: int, believe_plan: bool
) -> None:
    """Refuse a commit record that is about something else than the plan."""
    shard = record.shard
    rows = plan.rows(shard) if 0 <= shard < plan.n_shards else range(0)
    added = {spec.name for spec in plan.arrays_of(generation, shard)} if rows else set[str]()
    where = f"commit {shard} of {path}"
    if (record.first_row, record.last_row) != (rows.start, rows.stop - 1) or record.ids_digest != ids.digest(rows):
        raise IntegrityError(f"{where} is about other images than the plan's: remove it and run `make extract`")
    if record.plan_digest != plan.digest_of(generation) and not believe_plan:
        raise IntegrityError(
            f"{where} was made for another plan: {path / PLAN} was changed since; restore it, or let "
            f"`python -m stage1_extract diagnose {path}` say what the store holds"
        )
    paths = {name: plan.layout(name).relative_path(shard) for name in added}
    if {name: file.path for name, file in record.files.items() if name in added} != paths:  # others were dropped
        raise IntegrityError(f"{where} names other files than the plan's: remove it and run `make extract`")


@contextmanager
def damage(folder: Path) -> Generator[None, None, None]:
    """Say what zarr raises on damaged bytes or metadata as an IntegrityError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise IntegrityError(f"{folder} is damaged ({said}): {HEAL}") from None


def subgroup(group: zarr.Group, name: str) -> zarr.Group:
    """Return a group in a group; IntegrityError (exit 4) if an array has its name."""
    found = group[name]
    if not isinstance(found, zarr.Group):
        raise IntegrityError(f"expected the group {name} in {group.store_path}, found an array: restore the store")
    return found
