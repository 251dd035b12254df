"""Which parts of a store are committed, and which are still missing."""

from collections.abc import Collection, Iterable
from pathlib import Path

from configs.counted import counted
from configs.errors import EXTRACT
from store.errors import IntegrityError
from store.files.disk import size_of
from store.layout.ids import ImageIds
from store.layout.plan import FEATURES, Plan
from store.layout.schema import Codec
from store.log.commits import intact_records, read_commits


def missing_parts(path: Path, plan: Plan, leave: Collection[str] = ()) -> list[tuple[int, int]]:
    """List the generation and the shard of every part that is not committed yet.

    Args:
        path: the store.
        plan: its plan.
        leave: derived arrays that do not count.

    Raises:
        IntegrityError: a log was written for another plan (exit 4).
    """
    missing: list[tuple[int, int]] = []
    for generation in sorted({*range(plan.generation + 1)} - {plan.added[name] for name in leave}):
        committed = read_commits(path, generation)
        if committed.plan_digests - {plan.digest_of(generation)}:
            foreign = next(s for s, record in committed.items() if record.plan_digest != plan.digest_of(generation))
            raise IntegrityError(f"shard {foreign} of {path} was committed for another plan: extract into a new folder")
        missing += [(generation, shard) for shard in plan.shards_of(generation) if shard not in committed]
    return missing


def bytes_of(plan: Plan, parts: Iterable[tuple[int, int]]) -> int:
    """Add up the bytes of the files of some parts, given as generation and shard."""
    return sum(
        plan.layout(spec.name).file_bytes(len(plan.rows(shard)))
        for generation, shard in parts
        for spec in plan.arrays_of(generation, shard)
    )


def nameless_shards(plan: Plan, ids: ImageIds, shards: Iterable[int]) -> frozenset[int]:
    """Return the shards of which no image has a name: no config can ask for such images, so they are never encoded.

    Args:
        plan: the plan of a store.
        ids: the ids of the store; if they are damaged, no shard counts as nameless.
        shards: the shards to look at.
    """
    try:
        return frozenset(shard for shard in shards if not ids.any_named(plan.rows(shard)))
    except IntegrityError:
        return frozenset()


def require_nothing_lost(path: Path, plan: Plan, shards: Collection[int] | None = None) -> None:
    """Raise IntegrityError (exit 4) if a committed file is missing or has another size than its record says.

    An extraction would count the shard of such a file as done. Each file costs some microseconds on a local disk.

    Args:
        path: the store.
        plan: its plan.
        shards: the shards to look at; all of them by default.
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
            f"expected all files of committed shards in {path}, of {counted(n_shards, 'shard')} some are missing or cut, such "
            f"as {first}: if they lie on another disk, bring them back; otherwise `python -m store repair {path}` withdraws "
            f"what is damaged, and {EXTRACT} computes it again"
        )


def committed_failures(path: Path, plan: Plan) -> dict[int, str]:
    """Map every committed row whose image could not be encoded to the reason."""
    logs = [read_commits(path, generation) for generation in range(plan.generation + 1)]
    return {row: reason for log in logs for row, reason in sorted(log.failures.items())}


def stored_codec(path: Path) -> Codec:
    """Tell how the files of a store are compressed: zstd if the store is an archive, none otherwise."""
    files = (file for record in intact_records(path).values() for file in record.files.values())
    return "none" if all(file.codec == "none" for file in files) else "zstd"
