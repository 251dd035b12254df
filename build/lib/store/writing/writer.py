"""Creating a store and committing shards to it, by one process or by many."""

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
from numpy.typing import NDArray

from configs.files.atomic import PARTIAL
from store.errors import ArchiveReadOnly, LeaseLost, NonFinite, StoreError, StoreLocked
from store.files.disk import Unreadable, content, explaining_full_disks, make_lockable, make_way, numbered
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, Codec, Layout
from store.layout.shard import Aside, FileRecord, write_aside
from store.log.commits import CommitRecord, publish, read_commit
from store.log.leases import FOLDER as LEASES
from store.log.leases import PROBE, TAKEN_AWAY, Lease, disk_time, live_leases
from store.log.progress import missing_parts, stored_codec
from store.reading.reader import FEATURES, ProjectorState
from store.writing.prepare import prepare
from store.writing.retry import Kept, forget, kept_of

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
            writer = cls(path, plan, ids, stall_seconds, codec, leave)
            if presence == "exclusive":
                writer.release_committed()
            yield writer

    def remove_leftovers(self) -> None:
        """Remove what killed workers left; for one that is alone in the store, its own workers ended."""
        _sweep(self.path, 0.0)
        self.release_committed()

    def release_committed(self) -> None:
        """Remove leases of shards that are committed: their workers were killed between the commit and the release."""
        for lease in (self.path / LEASES).glob("*.json"):
            shard = numbered(lease.name)
            if shard is not None and shard < self.plan.n_shards and lease.is_file() and self.is_committed(shard):
                lease.unlink(missing_ok=True)

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

    def kept(self, shard: int) -> Kept:
        """What is there of a shard that was withdrawn to try its failures again."""
        return kept_of(self.path, self.plan, self.ids, shard, self.missing_generations(shard))

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
        forget(self.path, shard, generation)
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


def require_no_archive(path: Path) -> None:
    """Refuse a store whose files are compressed; ArchiveReadOnly (exit 7)."""
    if stored_codec(path) != "none":
        raise ArchiveReadOnly(
            f"expected a store to write to, {path} is an archive, which is only read: unpack it with "
            f"`python -m store export {path} --store OUT`"
        )


def _sweep(path: Path, idle_seconds: float) -> None:
    """Remove what killed writers left: half-written files, probes of the clock, leases that were being taken away.

    Nothing is removed that somebody has touched within `idle_seconds`.
    """
    now = disk_time(path)
    for stale in [found for found in path.rglob("*") if _is_leftover(found)]:
        with suppress(FileNotFoundError):  # a living worker may finish its own
            if now - stale.lstat().st_mtime < idle_seconds:
                continue
            if stale.is_dir() and not stale.is_symlink():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink()


def _is_leftover(path: Path) -> bool:
    taken_away = path.parent.name == LEASES and fnmatchcase(path.name, TAKEN_AWAY)
    return path.name.endswith(PARTIAL) or path.name.startswith(PROBE) or taken_away


@contextmanager
def lock(path: Path, presence: Presence, stall_seconds: float) -> Generator[None, None, None]:
    """Alone in the store; StoreLocked (exit 6) names who is there.

    Workers that share a store need it for a moment, to create it, and wait for each other; one that wants it for itself
    waits for nobody.
    """
    path.mkdir(parents=True, exist_ok=True)
    make_way(path, path / LEASES / "0.json")
    for name in (LOCK, HOLDER):
        make_lockable(path, path / name)
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
        (path / HOLDER).write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        guard.release()


def _lock_holder(path: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(content(path / HOLDER)))
    except (FileNotFoundError, Unreadable, ValueError, TypeError, RecursionError):
        return {}
    return found if {"host", "pid"} <= found.keys() else {}


def _require_alone(path: Path, stall_seconds: float) -> None:
    for shard, holder in live_leases(path, stall_seconds).items():
        raise StoreLocked(
            f"{path} is being written by {holder} (shard {shard}): wait for it, or stop it first; a worker that shares the "
            "store needs --worker-index and --num-workers"
        )


@contextmanager
def _disk(path: Path, needed: int) -> Generator[None, None, None]:
    """Say of a disk that cannot be written to how many bytes are needed and how many are free; NoSpace (exit 7)."""

    def explain(reason: str) -> str:
        folder = next(folder for folder in (path, *path.parents) if folder.exists())
        return (
            f"cannot write to {path} ({reason}): the whole store needs {needed:,} bytes, "
            f"{shutil.disk_usage(folder).free:,} are free; "
            "make room or make it writable, then run the same command to go on"
        )

    with explaining_full_disks(explain):
        yield
