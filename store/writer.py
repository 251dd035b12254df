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
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from configs.atomic import sync_directory, write_atomically
from store.commits import CommitRecord, intact_records, publish, read_commit, read_commits
from store.errors import ArchiveReadOnly, IntegrityError, LeaseLost, NonFinite, NoSpace, StoreError, StoreLocked
from store.fingerprint import require_equal
from store.ids import ImageIds, write_whole
from store.leases import Lease, disk_time, live_leases
from store.manifest import make_manifest, read_manifest, write_manifest
from store.plan import Plan, plan_path, read_plan
from store.reader import FEATURES, PROJECTOR, ProjectorState
from store.schema import ArraySpec, Codec, Layout, fill_value
from store.shard import PARTIAL, ZSTD_LEVEL, Aside, FileRecord, write_aside

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

    def __init__(
        self, path: Path, plan: Plan, ids: ImageIds, stall_seconds: float, codec: Codec, leave: Collection[str]
    ) -> None:  # fmt: skip
        self.path, self.plan, self.ids, self.stall_seconds = path, plan, ids, stall_seconds
        self._codec: Codec = codec
        self._leave = leave

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
        codec: Codec = "none",
        leave: Collection[str] = (),
    ) -> Generator["StoreWriter", None, None]:
        """The store at `path`, created if it is new, healed where its metadata, ids or projector are damaged.

        Derived arrays that are named in `leave` are nothing to this writer: it neither misses nor writes them.
        With the codec zstd it becomes an archive, which is never opened for writing again (ArchiveReadOnly, exit 7).
        Raises FingerprintMismatch (exit 4) or StoreError if there is a store of another plan, StoreLocked (exit 6)
        while another process writes, NoSpace (exit 7) where the disk is full or read-only.
        """
        with ExitStack() as held:
            if presence != "joined":
                with _disk(path, plan.total_bytes), ExitStack() as creating:
                    creating.enter_context(lock(path, presence, stall_seconds))
                    require_no_archive(path)
                    prepare(path, plan, ids, projector, codec)
                    _sweep(path, 0.0 if presence == "exclusive" else stall_seconds)
                    if presence == "exclusive":
                        held.push(creating.pop_all())
            yield cls(path, plan, ids, stall_seconds, codec, leave)

    def missing_shards(self) -> list[int]:
        """Shards that are not committed yet."""
        return sorted({shard for _, shard in missing_parts(self.path, self.plan, self._leave)})

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
        """Whether all records of a shard are there."""
        return not self.missing_generations(shard)

    def missing_generations(self, shard: int) -> list[int]:
        """Generations whose part of a shard is not committed."""
        arrays = [spec.name for spec in self.plan.arrays if spec.name not in self._leave]
        generations = {self.plan.generation_of(name, shard) for name in arrays}
        return [one for one in sorted(generations) if read_commit(self.path, shard, one) is None]

    def missing_arrays(self, shard: int) -> list[str]:
        """Names of the arrays of which a shard is not committed."""
        return [spec.name for one in self.missing_generations(shard) for spec in self.plan.arrays_of(one, shard)]

    def commit_shard(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], failures: Mapping[int, str],
        telemetry: Mapping[str, Any], lease: Lease | None = None,
    ) -> list[CommitRecord]:  # fmt: skip
        """Write a shard's files, then its record; the record is the commit. Takes a lease where none is given.

        `arrays` hold every row of the shard, in storage dtype; rows in `failures` are overwritten with fill. Of a store
        that has grown, what earlier generations committed stays, and each generation's part gets a record of its own.
        Raises NonFinite (exit 3) naming the images whose features are not numbers, LeaseLost (exit 6) if another worker
        took the shard over: nothing is published then.
        """
        try:
            rows = self.plan.rows(shard)
            if not failures.keys() <= set(rows):
                raise StoreError(f"expected failures among rows {rows.start}..{rows.stop - 1}, got {sorted(failures)}")
            generations = self.missing_generations(shard)
            parts = {one: self.plan.arrays_of(one, shard) for one in generations}  # what is committed stays: first wins
            filled = {s.name: self._checked(s, rows, arrays[s.name], failures) for part in parts.values() for s in part}
            lease = lease or Lease.take(self.path, shard, self.stall_seconds)
            if lease is None:
                raise LeaseLost(f"another worker is at shard {shard} of {self.path}: leave it to that one")
            with _disk(self.path, self.plan.total_bytes):
                return [
                    self._publish(one, shard, {s.name: filled[s.name] for s in part}, failures, telemetry, lease)
                    for one, part in parts.items()
                ]
        finally:
            if lease is not None:
                lease.release()

    def _publish(
        self, generation: int, shard: int, arrays: Mapping[str, NDArray[Any]], failures: Mapping[int, str],
        telemetry: Mapping[str, Any], lease: Lease,
    ) -> CommitRecord:  # fmt: skip
        files = self._write(generation, shard, arrays, lease)
        rows = self.plan.rows(shard)
        record = CommitRecord(
            shard=shard,
            first_row=rows.start,
            last_row=rows.stop - 1,
            ids_digest=self.ids.digest(rows),
            plan_digest=self.plan.digest_of(generation),
            files=files,
            failures=dict(sorted(failures.items())),
            telemetry=dict(telemetry),
        )
        self._require_held(lease, generation)
        publish(self.path, record, generation)
        return record.sealed()

    def _write(
        self, generation: int, shard: int, arrays: Mapping[str, NDArray[Any]], lease: Lease
    ) -> dict[str, FileRecord]:
        """All files of a shard: written aside, and put into their places while the lease is ours."""
        asides: dict[str, Aside] = {}
        try:
            for name, values in arrays.items():
                asides[name] = write_aside(self.path / FEATURES, self._layout(name), shard, values)
                lease.beat()
            self._require_held(lease, generation)
            return {name: aside.settle() for name, aside in asides.items()}
        finally:
            for aside in asides.values():
                aside.drop()

    def _layout(self, name: str) -> Layout:
        return replace(self.plan.layout(name), codec=self._codec)

    def _require_held(self, lease: Lease, generation: int) -> None:
        if not lease.held or read_commit(self.path, lease.shard, generation) is not None:
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


def missing_parts(path: Path, plan: Plan, leave: Collection[str] = ()) -> list[tuple[int, int]]:
    """Generation and shard of everything that is not committed, but for derived arrays in `leave`.

    Raises IntegrityError (exit 4) for logs of another plan.
    """
    missing: list[tuple[int, int]] = []
    for generation in sorted({*range(plan.generation + 1)} - {plan.added[name] for name in leave}):
        committed = read_commits(path, generation)
        if committed.plan_digests - {plan.digest_of(generation)}:
            foreign = next(s for s, record in committed.items() if record.plan_digest != plan.digest_of(generation))
            raise IntegrityError(f"shard {foreign} of {path} was committed for another plan: extract into a new folder")
        missing += [(generation, shard) for shard in plan.shards_of(generation) if shard not in committed]
    return missing


def missing_bytes(path: Path, plan: Plan, leave: Collection[str] = ()) -> int:
    """What is still to be written, but for derived arrays in `leave`."""
    parts = missing_parts(path, plan, leave)
    return sum(
        plan.layout(spec.name).file_bytes(len(plan.rows(s))) for one, s in parts for spec in plan.arrays_of(one, s)
    )


def committed_failures(path: Path, plan: Plan) -> dict[int, str]:
    """Rows of all commits whose image could not be encoded, with the reason."""
    found = [read_commits(path, generation).failures for generation in range(plan.generation + 1)]
    return {row: why for failures in found for row, why in sorted(failures.items())}


def prepare(
    path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None, codec: Codec = "none"
) -> None:  # fmt: skip
    """Plan, metadata, ids and projector: made if they are not there, written again where they are damaged."""
    if plan.generation and read_plan(path).generation == plan.generation - 1:
        grow(path, plan, ids, projector)
        return
    if plan_path(path, plan.generation).exists():
        with suppress(IntegrityError):  # a damaged plan is written again, if the rest of the store is of this one
            _require_same(path, read_plan(path), plan)
    if not (path / FEATURES).exists():
        _create(path, plan, ids, projector, codec)
        return
    try:
        healthy = plan_path(path, plan.generation).read_text() == plan.to_json()
        healthy &= not read_manifest(path, plan.generation).damaged(path / FEATURES)
    except (IntegrityError, FileNotFoundError, UnicodeDecodeError):
        healthy = False
    if not healthy:
        _heal(path, plan, ids, projector)


def grow(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Make `plan` the newest generation of a store; the caller is alone in it. Killed before the plan is there, nothing has
    happened; killed afterwards, the next extraction brings the metadata up to date.
    """
    aside = _build(path, plan, ids, projector)
    manifest = make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays])
    current = read_manifest(path, plan.generation - 1).files
    _install(path, aside, [name for name in manifest.files if name not in current])
    write_manifest(path, plan.generation, manifest)
    write_atomically(plan_path(path, plan.generation), plan.to_json())
    _install(path, aside, manifest.damaged(path / FEATURES))
    shutil.rmtree(aside)


def _create(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None, codec: Codec) -> None:
    """Built aside and renamed, so that it is whole or absent."""
    write_atomically(plan_path(path, plan.generation), plan.to_json())
    aside = _build(path, plan, ids, projector, codec)
    write_manifest(path, plan.generation, make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays]))
    aside.rename(path / FEATURES)
    sync_directory(path)


def _heal(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Write damaged files again; what can be made again must be what the log was written for."""
    missing_parts(path, plan)
    aside = _build(path, plan, ids, projector)
    manifest = make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays])
    damaged = manifest.damaged(path / FEATURES)
    for name in damaged:
        _log.warning("note: %s was damaged, it is written again", path / FEATURES / name)
    _install(path, aside, damaged)
    write_manifest(path, plan.generation, manifest)
    write_atomically(plan_path(path, plan.generation), plan.to_json())
    shutil.rmtree(aside)


def _install(path: Path, aside: Path, names: Iterable[str]) -> None:
    for name in names:
        place = path / FEATURES / name
        place.parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(place)
        sync_directory(place.parent)


def _build(
    path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None, codec: Codec = "none"
) -> Path:  # fmt: skip
    """Metadata, ids and projector, aside."""
    aside = path / (FEATURES + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    group = zarr.create_group(aside, attributes={"encode_once_format": plan.format})
    for spec in plan.arrays:
        _create_array(group, spec, plan, codec)
    ids.write(group, plan.ids_group)
    if projector is not None:
        attributes = {"kind": projector.kind, "config": projector.config, "sha256": projector.sha256}
        weights = group.create_group(PROJECTOR, attributes=attributes)
        for name in sorted(projector.weights):
            created = write_whole(weights, name, projector.weights[name], fill_value(projector.dtypes[name]))
            created.attrs["logical_dtype"] = projector.dtypes[name]
    return aside


def _create_array(group: zarr.Group, spec: ArraySpec, plan: Plan, codec: Codec) -> None:
    inner = 1 if spec.per_image_chunks else plan.shard_images
    group.create_array(
        spec.name,
        shape=(plan.n_rows, *spec.shape),
        dtype=spec.storage,
        chunks=(inner, *spec.shape),
        shards=(plan.shard_images, *spec.shape),
        compressors=[*([ZstdCodec(level=ZSTD_LEVEL)] if codec == "zstd" else []), Crc32cCodec()],
        fill_value=spec.fill,
        dimension_names=("image", *spec.axes),
        attributes={"logical_dtype": spec.dtype, **spec.attributes},
    )


def require_no_archive(path: Path) -> None:
    """Refuse a store whose files are compressed; ArchiveReadOnly (exit 7)."""
    files = [file for record in intact_records(path).values() for file in record.files.values()]
    if any(file.codec != "none" for file in files):
        raise ArchiveReadOnly(
            f"expected a store to write to, {path} is an archive, which is only read: unpack it with "
            f"`python -m store export {path} --store OUT`"
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
        raise StoreError(
            f"{path} holds a store of another plan: {'; '.join(differing)}; add what it does not have with --append, {advice}"
        )


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
