# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Creating a store and committing shards to it; one writer at a time."""

import errno
import json
import os
import shutil
import socket
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from configs.atomic import sync_directory, write_atomically
from store.commits import CommitRecord, publish, read_commits
from store.errors import IntegrityError, NonFinite, NoSpace, StoreError, StoreLocked
from store.fingerprint import require_equal
from store.ids import ImageIds, write_whole
from store.plan import PLAN, Plan, read_plan
from store.reader import FEATURES, PROJECTOR, ProjectorState
from store.schema import ArraySpec, fill_value
from store.shard import PARTIAL, write_shard

LOCK = "writer.lock"
HOLDER = "writer.json"
_SHOWN = 5


class StoreWriter:
    """Writes shards of one plan; a killed writer leaves nothing behind that a reader would believe."""

    def __init__(self, path: Path, plan: Plan, ids: ImageIds) -> None:
        self.path, self.plan, self.ids = path, plan, ids

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None
    ) -> Generator["StoreWriter", None, None]:
        """The store at `path`, created if it is new, with the writer's lock held.

        Raises FingerprintMismatch (exit 4) or StoreError if there is a store of another plan, StoreLocked (exit 6)
        while another process writes, NoSpace (exit 7) where the disk is full or read-only.
        """
        with ExitStack() as held:
            with _disk(path, plan.total_bytes):
                held.enter_context(_lock(path))
                if (path / PLAN).exists():
                    _require_same(path, read_plan(path), plan)
                else:
                    write_atomically(path / PLAN, plan.to_json())
                if not (path / FEATURES).exists():
                    _create_arrays(path, plan, ids, projector)
                _sweep(path)
            yield cls(path, plan, ids)

    def missing_shards(self) -> list[int]:
        """Shards that are not committed yet."""
        committed = read_commits(self.path)
        for record in committed.values():
            if record.plan_digest != self.plan.digest:
                raise IntegrityError(
                    f"shard {record.shard} of {self.path} was committed for another plan: extract into a new folder"
                )
        return [shard for shard in range(self.plan.n_shards) if shard not in committed]

    def commit_shard(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], failures: Mapping[int, str],
        telemetry: Mapping[str, Any],
    ) -> CommitRecord:  # fmt: skip
        """Write a shard's files, then its record; the record is the commit.

        `arrays` hold every row of the shard, in storage dtype; rows in `failures` are overwritten with fill.
        Raises NonFinite (exit 3) naming the images whose features are not numbers.
        """
        rows = self.plan.rows(shard)
        if not failures.keys() <= set(rows):
            raise StoreError(f"expected failures among rows {rows.start}..{rows.stop - 1}, got {sorted(failures)}")
        committed = read_commits(self.path).get(shard)
        if committed is not None:
            return committed  # the first commit wins, and its files stay
        filled = {spec.name: self._checked(spec, rows, arrays[spec.name], failures) for spec in self.plan.arrays}
        with _disk(self.path, self.plan.total_bytes):
            files = {
                name: write_shard(self.path / FEATURES, self.plan.layout(name), shard, values)
                for name, values in filled.items()
            }
            record = CommitRecord(
                shard=shard,
                first_row=rows.start,
                last_row=rows.stop - 1,
                ids_digest=self.ids.digest(rows),
                plan_digest=self.plan.digest,
                files=files,
                failures=dict(sorted(failures.items())),
                telemetry=dict(telemetry),
            )
            publish(self.path, record)
        return record.sealed()

    def _checked(self, spec: ArraySpec, rows: range, values: NDArray[Any], failures: Mapping[int, str]) -> NDArray[Any]:
        if len(values) != len(rows):
            raise StoreError(f"expected {len(rows)} rows of {spec.name} for this shard, got {len(values)}")
        failed = [row - rows.start for row in failures]
        finite = spec.finite(values)
        finite[failed] = True
        if not finite.all():
            bad = [rows.start + int(place) for place in np.flatnonzero(~finite)]
            named = ", ".join(self.ids.names(row)[0] if self.ids.names(row) else str(row) for row in bad[:_SHOWN])
            raise NonFinite(
                f"expected finite features, {spec.name} has NaN or infinity for {len(bad)} images ({named}): "
                "float16 overflows in some towers, try model.dtype bfloat16 or float32 in a new store"
            )
        if failed:
            values = values.copy()
            values[failed] = spec.fill
        return values


def _create_arrays(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Metadata, ids and projector: built aside and renamed, so that they are whole or absent."""
    aside = path / (FEATURES + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    group = zarr.create_group(aside, attributes={"encode_once_format": plan.format})
    for spec in plan.arrays:
        _create_array(group, spec, plan)
    ids.write(group)
    if projector is not None:
        attributes = {"kind": projector.kind, "config": projector.config}
        weights = group.create_group(PROJECTOR, attributes=attributes)
        for name in sorted(projector.weights):
            created = write_whole(weights, name, projector.weights[name], fill_value(projector.dtypes[name]))
            created.attrs["logical_dtype"] = projector.dtypes[name]
    aside.rename(path / FEATURES)
    sync_directory(path)


def _create_array(group: zarr.Group, spec: ArraySpec, plan: Plan) -> None:
    inner = 1 if spec.per_image_chunks else plan.shard_images
    group.create_array(
        spec.name,
        shape=(plan.n_images, *spec.shape),
        dtype=spec.storage,
        chunks=(inner, *spec.shape),
        shards=(plan.shard_images, *spec.shape),
        compressors=[Crc32cCodec()],
        fill_value=spec.fill,
        dimension_names=("image", *spec.axes),
        attributes={"logical_dtype": spec.dtype, **spec.attributes},
    )


def _require_same(path: Path, stored: Plan, wanted: Plan) -> None:
    """One store, one plan: what differs is named, fingerprints field by field."""
    advice = "extract into another folder (--run-dir), or replace this store with --overwrite"
    for name in sorted({*stored.fingerprints} & {*wanted.fingerprints}):
        found, expected = stored.fingerprints[name].model_dump(), wanted.fingerprints[name].model_dump()
        require_equal(f"the fingerprint of {name} in {path}", expected, found, advice)
    if stored != wanted:
        differing = [
            f"{field} (stored {_short(getattr(stored, field))}, wanted {_short(getattr(wanted, field))})"
            for field in Plan.model_fields
            if getattr(stored, field) != getattr(wanted, field)
        ]
        raise StoreError(f"{path} holds a store of another plan: {'; '.join(differing)}; {advice}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _sweep(path: Path) -> None:
    """Remove what a killed writer left half-written; only under the lock."""
    for stale in (*path.rglob(f"*{PARTIAL}"), *path.rglob(f".*{PARTIAL}")):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Generator[None, None, None]:
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        holder = path / HOLDER
        who = holder.read_text().strip() if holder.exists() else "another process"
        raise StoreLocked(f"{path} is being written by {who}: wait for it, or stop it first") from None
    try:
        (path / HOLDER).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _disk(path: Path, needed: int) -> Generator[None, None, None]:
    """Disk errors, said with what was needed and what is there."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES}:
            raise
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        raise NoSpace(
            f"cannot write to {path} ({error.strerror}): the whole store needs {needed:,} bytes, {free:,} are free; "
            "make room or make it writable, then run the same command to go on"
        ) from None
