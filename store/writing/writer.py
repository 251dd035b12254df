"""Creating a store and committing shards to it, by one process or by many."""

from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.counted import counted
from store.errors import ArchiveReadOnly, LeaseLost, NonFinite, StoreError
from store.files.disk import numbered
from store.layout.ids import ImageIds
from store.layout.plan import FEATURES, Plan
from store.layout.schema import ArraySpec, Codec, ShardLayout
from store.layout.shard import Aside, FileRecord, write_aside
from store.log.commits import CommitRecord, publish, read_commit
from store.log.leases import FOLDER as LEASES
from store.log.leases import Lease
from store.log.progress import missing_parts, stored_codec
from store.reading.projector_state import ProjectorState
from store.writing.disk_errors import naming_free_bytes
from store.writing.leftovers import sweep
from store.writing.lock import STALL_SECONDS, Presence, lock
from store.writing.prepare import prepare
from store.writing.retry import KeptRows, forget, kept_of

_SHOWN = 5


class StoreWriter:
    """A store that is open for writing shards of one plan; a killed writer leaves nothing that a reader would believe."""

    def __init__(
        self, path: Path, plan: Plan, ids: ImageIds, stall_seconds: float, codec: Codec, leave: Collection[str]
    ) -> None:  # fmt: skip
        self.path, self.plan, self.ids, self.stall_seconds = path, plan, ids, stall_seconds
        self._codec: Codec = codec
        self._leave = leave
        self.idle: Collection[int] = ()
        """Shards that this writer does not miss, because nobody asks for their images."""

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
        """Open the store at `path`; create it if it is new, heal it if its metadata, ids or projector are damaged.

        Args:
            path: Folder of the store.
            plan: The plan to write.
            ids: The ids that `plan` was made for.
            projector: The projector to lay in the store, if there is one.
            presence: Whether this process writes alone.
            stall_seconds: Seconds without progress after which another worker is taken for dead.
            codec: With `zstd` the store becomes an archive, which is never opened for writing again.
            leave: Derived arrays that this writer ignores: it neither misses nor writes them.

        Raises:
            FingerprintMismatch: the store was made by something else (exit 4).
            StoreError: there is a store of another plan (exit 4).
            StoreLocked: another process writes (exit 6).
            ArchiveReadOnly: the store is an archive (exit 7).
            NoSpace: the disk is full or read-only (exit 7).
        """
        with ExitStack() as held:
            if presence != "joined":
                with naming_free_bytes(path, plan.total_bytes), ExitStack() as creating:
                    creating.enter_context(lock(path, presence, stall_seconds))
                    require_no_archive(path)
                    prepare(path, plan, ids, projector, codec)
                    sweep(path, 0.0 if presence == "exclusive" else stall_seconds)
                    if presence == "exclusive":
                        held.push(creating.pop_all())
            writer = cls(path, plan, ids, stall_seconds, codec, leave)
            if presence == "exclusive":
                writer.release_committed()
            yield writer

    def remove_leftovers(self) -> None:
        """Remove what killed workers left; for a writer that is alone in the store, once its own workers have ended."""
        sweep(self.path, 0.0)
        self.release_committed()

    def release_committed(self) -> None:
        """Remove leases of committed shards: their workers were killed between the commit and the release."""
        for lease in (self.path / LEASES).glob("*.json"):
            shard = numbered(lease.name)
            if shard is not None and shard < self.plan.n_shards and lease.is_file() and self.is_committed(shard):
                lease.unlink(missing_ok=True)

    def missing_shards(self) -> list[int]:
        """List the shards that are not committed yet, without the idle shards."""
        return sorted({shard for _, shard in missing_parts(self.path, self.plan, self._leave)}.difference(self.idle))

    def claim(self, shard: int) -> Lease | None:
        """Take the lease of a shard, the right to compute it; None if the shard is committed, or a living worker holds it."""
        if self.is_committed(shard):
            return None
        lease = Lease.take(self.path, shard, self.stall_seconds)
        if lease is not None and self.is_committed(shard):  # committed since the check above
            lease.release()
            return None
        return lease

    def is_committed(self, shard: int) -> bool:
        """Whether all commit records of a shard are there."""
        return not self.missing_generations(shard)

    def missing_generations(self, shard: int) -> list[int]:
        """List the generations whose part of a shard is not committed."""
        arrays = [spec.name for spec in self.plan.arrays if spec.name not in self._leave]
        generations = {self.plan.generation_of(name, shard) for name in arrays}
        return [number for number in sorted(generations) if read_commit(self.path, shard, number) is None]

    def kept(self, shard: int) -> KeptRows:
        """Read the good features of a shard that was withdrawn so that its failed images are tried again."""
        return kept_of(self.path, self.plan, self.ids, shard, self.missing_generations(shard))

    def missing_arrays(self, shard: int) -> list[str]:
        """Name the arrays of which a shard is not committed."""
        generations = self.missing_generations(shard)
        return [spec.name for generation in generations for spec in self.plan.arrays_of(generation, shard)]

    def commit_shard(
        self, shard: int, arrays: Mapping[str, NDArray[Any]], failures: Mapping[int, str],
        telemetry: Mapping[str, Any], lease: Lease | None = None,
    ) -> list[CommitRecord]:  # fmt: skip
        """Write a shard's files, then its record; the record is the commit.

        In a store that has grown, what earlier generations committed stays, and each generation's part of the shard gets a
        record of its own.

        Args:
            shard: The shard to commit.
            arrays: Every row of the shard, in storage dtype, by array.
            failures: Rows whose image could not be encoded, with the reason; their values are replaced by fill.
            telemetry: What the record says about the making: times, host, versions.
            lease: The lease of the shard, which is released in any case; default: take one.

        Returns:
            The records that were published.

        Raises:
            NonFinite: features are not numbers; names the images (exit 3). Nothing is published.
            LeaseLost: another worker took the shard over (exit 6). Nothing is published.
        """
        try:
            rows = self.plan.rows(shard)
            if not failures.keys() <= set(rows):
                raise StoreError(f"expected failures among rows {rows.start}..{rows.stop - 1}, got {sorted(failures)}")
            # The parts of other generations are committed, and the first commit wins.
            parts = {number: self.plan.arrays_of(number, shard) for number in self.missing_generations(shard)}
            filled = {s.name: self._checked(s, rows, arrays[s.name], failures) for part in parts.values() for s in part}
            lease = lease or Lease.take(self.path, shard, self.stall_seconds)
            if lease is None:
                raise LeaseLost(f"another worker is at shard {shard} of {self.path}: leave the shard to that worker")
            with naming_free_bytes(self.path, self.plan.total_bytes):
                return [
                    self._publish(number, shard, {s.name: filled[s.name] for s in part}, failures, telemetry, lease)
                    for number, part in parts.items()
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
        """Write all files of a shard aside, then move them to their places while this writer holds the lease."""
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

    def _layout(self, name: str) -> ShardLayout:
        return replace(self.plan.layout(name), codec=self._codec)

    def _require_held(self, lease: Lease, generation: int) -> None:
        if not lease.held or read_commit(self.path, lease.shard, generation) is not None:
            raise LeaseLost(
                f"shard {lease.shard} of {self.path} was taken over after {self.stall_seconds:.0f} s without progress: "
                "the worker that took it finishes it"
            )

    def _checked(self, spec: ArraySpec, rows: range, values: NDArray[Any], failures: Mapping[int, str]) -> NDArray[Any]:
        """Require finite values in all rows but the failed ones, and return the values with fill in the failed rows."""
        if len(values) != len(rows):
            raise StoreError(f"expected {counted(len(rows), 'row')} of {spec.name} for this shard, got {len(values)}")
        failed = [row - rows.start for row in failures]
        finite = spec.finite(values)
        finite[failed] = True
        if not finite.all():
            bad = [rows.start + int(index) for index in np.flatnonzero(~finite)]
            named = ", ".join(self.ids.names(row)[0] if self.ids.names(row) else str(row) for row in bad[:_SHOWN])
            raise NonFinite(
                f"expected finite features, {spec.name} has NaN or infinity for {counted(len(bad), 'image')} ({named}): "
                "float16 overflows in some towers, try model.dtype bfloat16 or float32 in a new store"
            )
        if failed:
            values = values.copy()
            values[failed] = spec.fill
        return values


def require_no_archive(path: Path) -> None:
    """Raise ArchiveReadOnly (exit 7) if the files of the store at `path` are compressed."""
    if stored_codec(path) != "none":
        raise ArchiveReadOnly(
            f"expected a store to write to, {path} is an archive, which is only read: unpack it with "
            f"`python -m store export {path} --store OUT`"
        )
