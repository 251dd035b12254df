"""What a store has committed: which rows hold features of which arrays, by the plan, the ids and the commit logs alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from configs.experiment import StoreLocation
from store.errors import IntegrityError, StoreMissing
from store.layout.fingerprint import Fingerprint
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec, Codec
from store.log.commits import CommitLog, CommitRecord
from store.reading.absent import how_to_add, maker_of
from store.reading.opening import require_fits_plan

_SHOWN = 5


class CommittedStore:
    """A store as its plan, its ids and its commit logs describe it; opens no shard.

    A shard exists only if its record does: a reader ignores files that no record names.
    """

    def __init__(
        self, path: StoreLocation, folder: Path, plan: Plan, logs: Sequence[CommitLog], ids: ImageIds, believe_plan: bool
    ) -> None:  # fmt: skip
        """Take over what was read from a store.

        Args:
            path: Where the user says that the store lies: a folder, or a URL.
            folder: The folder with the store's small files; behind a URL, a temporary copy.
            plan: The newest plan.
            logs: The commit log of each generation.
            ids: The ids of all rows.
            believe_plan: Accept records that were written for another plan.
        """
        self.path, self.plan, self.logs, self.ids = path, plan, logs, ids
        self.arrays: dict[str, ArraySpec] = {spec.name: spec for spec in plan.arrays}
        self._folder, self._believe_plan = folder, believe_plan
        self._failed: dict[str, Mapping[int, str]] = {}
        self._require_own_logs()

    def fingerprint(self, name: str) -> Fingerprint:
        """Return the fingerprint of an array: the record of what made it."""
        return self.plan.fingerprints[name]

    @property
    def codec(self) -> Codec:
        """How the shards are compressed: zstd in an archive."""
        records = (record for log in self.logs for record in log.values())
        files = (file for record in records for file in record.files.values())
        return "none" if (first := next(files, None)) is None else first.codec

    @property
    def committed_shards(self) -> list[int]:
        """Shards of which every array is committed."""
        return self.shards_with(self.arrays)

    @property
    def committed_rows(self) -> list[int]:
        """Rows of committed shards, failed rows included."""
        return [row for shard in self.committed_shards for row in self.plan.rows(shard)]

    @property
    def missing_shards(self) -> list[int]:
        """Shards of which at least one array is not committed."""
        return sorted({*range(self.plan.n_shards)} - {*self.committed_shards})

    def shards_with(self, names: Iterable[str]) -> list[int]:
        """List the shards of which all arrays in `names` are committed."""
        wanted = [*names]
        return [shard for shard in range(self.plan.n_shards) if all(self._is_committed(n, shard) for n in wanted)]

    def rows_with(self, names: Iterable[str]) -> list[int]:
        """List the rows that hold features of all arrays in `names`."""
        wanted = [*names]
        failed = self.failed(wanted)
        return [row for shard in self.shards_with(wanted) for row in self.plan.rows(shard) if row not in failed]

    def failed(self, names: Iterable[str] | None = None) -> dict[int, str]:
        """Return the rows that lack an array because their image could not be encoded, each with the reason.

        An array that was added while an image could not be read lacks that image; earlier arrays still hold the image.

        Args:
            names: The arrays to look at; default: all arrays of the store.
        """
        failures = [self._failed_of(name) for name in (self.arrays if names is None else names)]
        return dict(sorted({row: why for rows in failures for row, why in rows.items()}.items()))

    def record(self, name: str, shard: int) -> CommitRecord | None:
        """Return the commit record of a shard of an array, or None if the shard is not committed.

        Raises:
            IntegrityError: the record is not about this plan (exit 4).
        """
        generation = self.plan.generation_of(name, shard)
        record = self.logs[generation].get(shard)
        if record is not None:
            require_fits_plan(self._folder, self.plan, self.ids, record, generation, self._believe_plan)
        return record

    def require(self, names: Iterable[str]) -> None:
        """Raise StoreMissing (exit 5) unless every array in `names` is in the store."""
        absent = [name for name in names if name not in self.arrays]
        if absent:
            raise StoreMissing(
                f"expected the arrays {', '.join(absent)} in {self.path}, it has {', '.join(self.arrays)}: "
                f"{how_to_add(absent, self.plan)}"
            )

    def require_complete(self, names: Iterable[str], rows: Iterable[int]) -> None:
        """Raise StoreMissing (exit 5) unless all `rows` of all arrays in `names` are committed."""
        wanted = {row // self.plan.shard_images for row in rows}
        missing = {(name, shard) for name in names for shard in wanted if not self._is_committed(name, shard)}
        if missing:
            shards, arrays = {shard for _, shard in missing}, {name for name, _ in missing}
            raise StoreMissing(
                f"{len(shards)} of {self.plan.n_shards} shards in {self.path} are not extracted yet: "
                f"run {self._maker(arrays)} to go on"
            )

    def _failed_of(self, name: str) -> Mapping[int, str]:
        """Return the rows that one array lacks, read from the log of the generation that wrote the array's shard.

        Logs of other generations list failures of other arrays in the same rows.
        """
        if name not in self._failed:
            self._failed[name] = {
                row: why
                for generation, log in enumerate(self.logs)
                for row, why in log.failures.items()
                if self.plan.generation_of(name, row // self.plan.shard_images) == generation
            }
        return self._failed[name]

    def _is_committed(self, name: str, shard: int) -> bool:
        return shard in self.logs[self.plan.generation_of(name, shard)]

    def _require_own_logs(self) -> None:
        """Refuse logs that were written for other plans; all else in a record is compared when the record is used."""
        for generation, log in enumerate(self.logs):
            if not self._believe_plan and log.plan_digests - {self.plan.digest_of(generation)}:
                for record in log.values():
                    require_fits_plan(self._folder, self.plan, self.ids, record, generation, self._believe_plan)
            if log and not 0 <= min(log) <= max(log) < self.plan.n_shards:
                raise IntegrityError(
                    f"the commit log of {self.path} has shards that its plan lacks: restore both from one copy"
                )

    def _maker(self, names: Collection[str]) -> str:
        """Name the commands that make some arrays."""
        derived = {f"`python -m store derive {name} {self.path}`" for name in names if name in self.plan.derived}
        return " and ".join([*([maker_of(self.plan)] if len(derived) < len({*names}) else []), *sorted(derived)])

    def _named(self, row: int) -> str:
        """Name the image of a row for a message; an image may have several names."""
        return ", ".join(self.ids.names(row)[:_SHOWN])
