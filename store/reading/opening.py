"""Checks before a store is believed: its Zarr group, its metadata, its ids, and whether a commit record fits its plan."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from configs.errors import EXTRACT
from store.errors import IntegrityError, StoreMissing
from store.files.regular_files import RegularFiles
from store.layout.ids import ImageIds
from store.layout.manifest import HEAL, file_digest, manifest_path, read_manifest
from store.layout.plan import FEATURES, PLAN, Plan
from store.layout.record import CommitRecord
from store.log.compacted import FOLDER as COMMITS


def open_features(path: Path) -> zarr.Group:
    """Open the plain Zarr group of a store.

    Raises:
        StoreMissing: the store has a plan, but no features yet (exit 5).
        IntegrityError: the group is damaged, or it is missing though shards may be committed (exit 4).
    """
    folder = path / FEATURES
    if not folder.is_dir() and os.path.lexists(path / COMMITS):
        raise IntegrityError(
            f"{folder} is missing though shards of it may be committed: bring it back, if it is on another disk; otherwise "
            f"`python -m store repair {path}` withdraws what is lost, and {EXTRACT} computes it again"
        )
    if not folder.is_dir():
        raise StoreMissing(f"{path} has a plan but no {FEATURES} yet: run {EXTRACT} to go on")
    library: Any = zarr  # typed in part
    with as_integrity_error(folder):
        return library.open_group(RegularFiles(folder), mode="r")


def stored_ids(path: Path, plan: Plan) -> ImageIds:
    """Read the ids of a store; raises IntegrityError (exit 4) if they are damaged, or differ from the plan's."""
    folder = path / FEATURES / plan.ids_group
    with as_integrity_error(folder):
        ids = ImageIds.read(subgroup(open_features(path), plan.ids_group))
    if len(ids) != plan.n_rows or ids.digest() != plan.ids_digest:
        raise IntegrityError(f"the ids in {folder} are not those of the plan: {HEAL}")
    return ids


def require_metadata(path: Path, plan: Plan) -> None:
    """Raise IntegrityError (exit 4) if a `zarr.json` is not as it was written: zarr itself checks nothing in it."""
    damaged = read_manifest(path, plan.generation).damaged(path / FEATURES, metadata_only=True)
    if damaged:  # A store that grows right now has, for a moment, the metadata of the generation before or after.
        neighbours = (plan.generation - 1, plan.generation + 1)
        manifests = [read_manifest(path, number) for number in neighbours if manifest_path(path, number).is_file()]
        for name in damaged:
            if file_digest(path / FEATURES / name) not in {manifest.files.get(name, "") for manifest in manifests}:
                raise IntegrityError(f"{path / FEATURES / name} is damaged or missing: {HEAL}")


def require_fits_plan(
    path: Path, plan: Plan, ids: ImageIds, record: CommitRecord, generation: int, believe_plan: bool
) -> None:
    """Raise IntegrityError (exit 4) if a commit record is about other images, another plan or other files than the plan's.

    Args:
        path: Folder of the store, for the message.
        plan: The store's newest plan.
        ids: The ids that `plan` was made for.
        record: The commit record to check.
        generation: The generation in whose log the record lies.
        believe_plan: Accept a record that was written for another plan, to look into a store whose plan was changed.
    """
    shard = record.shard
    rows = plan.rows(shard) if 0 <= shard < plan.n_shards else range(0)
    added = {spec.name for spec in plan.arrays_of(generation, shard)} if rows else set[str]()
    subject = f"commit {shard} of {path}"
    if (record.first_row, record.last_row) != (rows.start, rows.stop - 1) or record.ids_digest != ids.digest(rows):
        raise IntegrityError(f"{subject} is about other images than the plan's: remove it and run {EXTRACT}")
    if record.plan_digest != plan.digest_of(generation) and not believe_plan:
        raise IntegrityError(
            f"{subject} was made for another plan: {path / PLAN} was changed since; restore it, or let "
            f"`python -m stage1_extract diagnose {path}` say what the store holds"
        )
    paths = {name: plan.layout(name).relative_path(shard) for name in added}
    # Arrays that were dropped are still in the record, but no longer in the plan.
    if {name: file.path for name, file in record.files.items() if name in added} != paths:
        raise IntegrityError(f"{subject} names other files than the plan's: remove it and run {EXTRACT}")


def in_one_line(error: BaseException) -> str:
    """Return an error's message without its line breaks, or the name of its class if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def as_integrity_error(folder: Path) -> Generator[None, None, None]:
    """Turn what zarr raises on damaged bytes or metadata into an IntegrityError that names the folder."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise IntegrityError(f"{folder} is damaged ({in_one_line(error)}): {HEAL}") from None


def subgroup(group: zarr.Group, name: str) -> zarr.Group:
    """Return a group in a group; IntegrityError (exit 4) if an array has its name."""
    member = group[name]
    if not isinstance(member, zarr.Group):
        raise IntegrityError(f"expected the group {name} in {group.store_path}, found an array: restore the store")
    return member
