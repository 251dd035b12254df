# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (zarr's stores are typed in part)
"""Creating a store and committing shards to it, by one process or by many."""

import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from configs.atomic import sync_directory, write_atomically
from store.commits import CommitRecord, publish, read_commits
from store.errors import IntegrityError, LeaseLost, NonFinite, NoSpace, StoreError, StoreLocked
from store.fingerprint import require_equal
from store.ids import ImageIds, write_whole
from store.leases import Lease, disk_time, live_leases
from store.manifest import make_manifest, read_manifest, write_manifest
from store.plan import PLAN, Plan, read_plan
from store.reader import FEATURES, PROJECTOR, ProjectorState
from store.schema import ArraySpec, fill_value
from store.shard import PARTIAL, Aside, FileRecord, write_aside

LOCK = "writer.lock"
HOLDER = "writer.json"
STALL_SECONDS = 300.0
"""A worker without progress for so long is taken for dead, wherever it runs."""
Presence = Literal["exclusive", "shared", "joined"]
"""Alone in the store; one of several workers; one of several below a process that is alone in it."""
_CREATION_SECONDS = 60.0
_POLL_SECONDS = 0.05
_log = logging.getLogger(__name__)
_SHOWN = 5


class StoreWriter:
    """Writes shards of one plan; a killed writer leaves nothing behind that a reader would believe."""

    def __init__(self, path: Path, plan: Plan, ids: ImageIds, stall_seconds: float) -> None:
        self.path, self.plan, self.ids, self.stall_seconds = path, plan, ids, stall_seconds

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        plan: Plan,
        ids: ImageIds,
        projector: ProjectorState | None,
        presence: Presence = "exclusive",
        stall_seconds: float = STALL_SECONDS,
    ) -> Generator["StoreWriter", None, None]:
        """The store at `path`, created if it is new, healed where its metadata, ids or projector are damaged.

        Raises FingerprintMismatch (exit 4) or StoreError if there is a store of another plan, StoreLocked (exit 6)
        while another process writes, NoSpace (exit 7) where the disk is full or read-only.
        """
        with ExitStack() as held:
            if presence != "joined":
                with _disk(path, plan.total_bytes), ExitStack() as creating:
                    creating.enter_context(lock(path, presence, stall_seconds))
                    prepare(path, plan, ids, projector)
                    _sweep(path, 0.0 if presence == "exclusive" else stall_seconds)
                    if presence == "exclusive":
                        held.push(creating.pop_all())
            yield cls(path, plan, ids, stall_seconds)

    def missing_shards(self) -> list[int]:
        """Shards that are not committed yet."""
        committed = read_commits(self.path)
        for record in committed.values():
            if record.plan_digest != self.plan.digest:
                raise IntegrityError(
                    f"shard {record.shard} of {self.path} was committed for another plan: extract into a new folder"
                )
        return [shard for shard in range(self.plan.n_shards) if shard not in committed]

    def claim(self, shard: int) -> Lease | None:
        """The right to compute a shard; None if it is committed, or someone alive is at it."""
        if self.is_committed(shard):
            return None
        lease = Lease.take(self.path, shard, self.stall_seconds)
        if lease is not None and self.is_committed(shard):  # between the two looks
            lease.release()
            return None
        return lease

    def is_committed(self, shard: int) -> bool:
        """Whether a shard's record is there."""
        return shard in read_commits(self.path)

    def commit_shard(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], failures: Mapping[int, str],
        telemetry: Mapping[str, Any], lease: Lease | None = None,
    ) -> CommitRecord:  # fmt: skip
        """Write a shard's files, then its record; the record is the commit. Takes a lease where none is given.

        `arrays` hold every row of the shard, in storage dtype; rows in `failures` are overwritten with fill.
        Raises NonFinite (exit 3) naming the images whose features are not numbers, LeaseLost (exit 6) if another worker
        took the shard over: nothing is published then.
        """
        rows = self.plan.rows(shard)
        if not failures.keys() <= set(rows):
            raise StoreError(f"expected failures among rows {rows.start}..{rows.stop - 1}, got {sorted(failures)}")
        committed = read_commits(self.path).get(shard)
        if committed is not None:
            return committed  # the first commit wins, and its files stay
        filled = {spec.name: self._checked(spec, rows, arrays[spec.name], failures) for spec in self.plan.arrays}
        lease = lease or Lease.take(self.path, shard, self.stall_seconds)
        if lease is None:
            raise LeaseLost(f"another worker is at shard {shard} of {self.path}: leave it to that one")
        try:
            with _disk(self.path, self.plan.total_bytes):
                files = self._write(shard, filled, lease)
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
                self._require_held(lease)
                publish(self.path, record)
        finally:
            lease.release()
        return record.sealed()

    def _write(self, shard: int, arrays: Mapping[str, NDArray[Any]], lease: Lease) -> dict[str, FileRecord]:
        """All files of a shard: written aside, and put into their places while the lease is ours."""
        asides: dict[str, Aside] = {}
        try:
            for name, values in arrays.items():
                asides[name] = write_aside(self.path / FEATURES, self.plan.layout(name), shard, values)
                lease.beat()
            self._require_held(lease)
            return {name: aside.settle() for name, aside in asides.items()}
        finally:
            for aside in asides.values():
                aside.drop()

    def _require_held(self, lease: Lease) -> None:
        if not lease.held or self.is_committed(lease.shard):
            raise LeaseLost(
                f"shard {lease.shard} of {self.path} was taken over after {self.stall_seconds:.0f} s without progress: "
                "its other worker finishes it"
            )

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


def prepare(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Plan, metadata, ids and projector: made if they are not there, written again where they are damaged."""
    if (path / PLAN).exists():
        with suppress(IntegrityError):  # a damaged plan is written again, if the rest of the store is of this one
            _require_same(path, read_plan(path), plan)
    if not (path / FEATURES).exists():
        _create(path, plan, ids, projector)
        return
    try:
        healthy = (path / PLAN).read_text() == plan.to_json() and not read_manifest(path, plan.generation).damaged(
            path / FEATURES
        )
    except IntegrityError:
        healthy = False
    if not healthy:
        _heal(path, plan, ids, projector)


def _create(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Built aside and renamed, so that it is whole or absent."""
    write_atomically(path / PLAN, plan.to_json())
    aside = _build(path, plan, ids, projector)
    write_manifest(path, plan.generation, make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays]))
    aside.rename(path / FEATURES)
    sync_directory(path)


def _heal(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Write damaged files again; what can be made again must be what the log was written for."""
    foreign = [record.shard for record in read_commits(path).values() if record.plan_digest != plan.digest]
    if foreign:
        raise IntegrityError(
            f"expected shards of this plan in {path}, {len(foreign)} were committed for another: extract into a new folder"
        )
    aside = _build(path, plan, ids, projector)
    manifest = make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays])
    for name in manifest.damaged(path / FEATURES):
        place = path / FEATURES / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(place)
        sync_directory(place.parent)
        _log.warning("note: %s was damaged, it is written again", place)
    write_manifest(path, plan.generation, manifest)
    write_atomically(path / PLAN, plan.to_json())
    shutil.rmtree(aside)


def _build(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> Path:
    """Metadata, ids and projector, aside."""
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
    return aside


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


def _sweep(path: Path, idle_seconds: float) -> None:
    """Remove what killed writers left half-written: files that nobody has touched for so long."""
    now = disk_time(path)
    for stale in (*path.rglob(f"*{PARTIAL}"), *path.rglob(f".*{PARTIAL}")):
        with suppress(FileNotFoundError):  # a living worker may finish its own
            if now - stale.stat().st_mtime < idle_seconds:
                continue
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink()


@contextmanager
def lock(path: Path, presence: Presence, stall_seconds: float) -> Generator[None, None, None]:
    """Alone in the store; StoreLocked (exit 6) names who is there.

    Workers that share a store need it for a moment, to create it, and wait for each other; one that wants it for itself
    waits for nobody.
    """
    path.mkdir(parents=True, exist_ok=True)
    guard = filelock.FileLock(path / LOCK)
    deadline = time.monotonic() + (_CREATION_SECONDS if presence == "shared" else 0)
    while True:
        try:
            guard.acquire(timeout=0)
            break
        except filelock.Timeout:
            holder = _lock_holder(path)
            if time.monotonic() >= deadline or holder.get("presence") == "exclusive":
                who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
                raise StoreLocked(f"{path} is being written by {who}: wait for it, or stop it first") from None
            time.sleep(_POLL_SECONDS)
    try:
        if presence == "exclusive":
            _require_alone(path, stall_seconds)
        me = {"host": socket.gethostname(), "pid": os.getpid(), "presence": presence}
        (path / HOLDER).write_text(json.dumps(me))
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        guard.release()


def _lock_holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / HOLDER).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _require_alone(path: Path, stall_seconds: float) -> None:
    for shard, holder in live_leases(path, stall_seconds).items():
        raise StoreLocked(
            f"{path} is being written by {holder} (shard {shard}): wait for it, or stop it first; a worker that shares the "
            "store needs --worker-index and --num-workers"
        )


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
