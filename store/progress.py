"""What of a store is committed, and what is not yet."""

from collections.abc import Collection
from pathlib import Path

from store.commits import intact_records, read_commits
from store.errors import IntegrityError
from store.plan import Plan
from store.schema import Codec


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


def stored_codec(path: Path) -> Codec:
    """How the files of a store are compressed: with zstd in an archive."""
    files = (file for record in intact_records(path).values() for file in record.files.values())
    return "none" if all(file.codec == "none" for file in files) else "zstd"
