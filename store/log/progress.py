"""What of a store is committed, and what is not yet."""

from collections.abc import Collection
from pathlib import Path

from store.errors import IntegrityError
from store.files.disk import size_of
from store.layout.plan import FEATURES, Plan
from store.layout.schema import Codec
from store.log.commits import intact_records, read_commits


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


def require_nothing_lost(path: Path, plan: Plan, shards: Collection[int] | None = None) -> None:
    """Raise IntegrityError (exit 4) if a file that is committed (default: of any shard) is not there in its size.

    An extraction counts such a shard as done. Looks at one file after another: some microseconds each on a local disk.
    """
    lost: list[tuple[int, Path]] = []
    for generation in range(plan.generation + 1):
        records = read_commits(path, generation)
        for shard in records if shards is None else sorted(records.keys() & {*shards}):
            used = {spec.name for spec in plan.arrays_of(generation, shard)}
            files = [file for name, file in records[shard].files.items() if name in used]
            lost += [(shard, path / FEATURES / f.path) for f in files if size_of(path / FEATURES / f.path) != f.bytes]
    if lost:
        n_shards, (_, first) = len({shard for shard, _ in lost}), lost[0]
        raise IntegrityError(
            f"{n_shards} shards of {path} are committed, and their files are missing or cut, {first} for one: bring them "
            f"back, if they are on another disk; otherwise `python -m store repair {path}` withdraws these shards, and "
            "`make extract` computes them again"
        )


def committed_failures(path: Path, plan: Plan) -> dict[int, str]:
    """Rows of all commits whose image could not be encoded, with the reason."""
    found = [read_commits(path, generation).failures for generation in range(plan.generation + 1)]
    return {row: why for failures in found for row, why in sorted(failures.items())}


def stored_codec(path: Path) -> Codec:
    """How the files of a store are compressed: with zstd in an archive."""
    files = (file for record in intact_records(path).values() for file in record.files.values())
    return "none" if all(file.codec == "none" for file in files) else "zstd"
