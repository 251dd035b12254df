"""Which rows of a store an extraction asks for: a store may hold more images than its config names now."""

from collections.abc import Collection
from pathlib import Path

from configs.counted import agreeing, counted
from stage1_extract.sources import Sources
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.log.commits import SUPERSEDED
from store.log.progress import committed_failures, missing_parts


def rows_not_asked_for(named: ImageIds, plan: Plan, ids: ImageIds) -> frozenset[int]:
    """List the rows of a store whose image the experiment does not name now; superseded rows are among them.

    Args:
        named: Ids of the images that the experiment names.
        plan: Plan of the store.
        ids: Ids of the store.
    """
    if named.digest() == plan.ids_digest:
        return frozenset()

    def row_of(image: int) -> int | None:
        row = ids.row_of_sha(named.sha_of_row(image))
        if row is None:  # an image that cannot be read now is known by its name
            row = ids.row_of_name(named.names(image)[0])
        return row

    asked = {row_of(image) for image in range(len(named))}
    return frozenset(row for shard in range(plan.n_shards) for row in plan.rows(shard) if row not in asked)


def idle_shards(plan: Plan, missing: list[int], not_asked_for: frozenset[int]) -> frozenset[int]:
    """Return the missing shards of which no image is asked for.

    They stay as they are: images that nobody asks for now may be gone, or may be asked for again later.
    """
    return frozenset(shard for shard in missing if not_asked_for.issuperset(plan.rows(shard)))


def tolerance(path: Path, plan: Plan, missing: list[int], not_asked_for: frozenset[int]) -> int:
    """Count the images that are not asked for and that have failed already, or may still fail in a worker.

    A worker that joins a store does not know which images are asked for, so it must tolerate this many more failures.
    """
    committed = {row for row, reason in committed_failures(path, plan).items() if reason != SUPERSEDED}
    to_come = {row for shard in missing for row in plan.rows(shard)}
    return len(not_asked_for & (committed | to_come))


def note_of_further(path: Path, plan: Plan, sources: Sources, leave: Collection[str]) -> list[str]:
    """Say how many images a store holds, or has planned, that the experiment does not name; an empty list for none.

    Args:
        path: Folder of the store.
        plan: Plan of the store.
        sources: The images by the plan's rows.
        leave: Derived arrays that do not count.
    """
    if not sources.not_asked_for:
        return []
    failed = committed_failures(path, plan)
    missing = {shard for _, shard in missing_parts(path, plan, leave)}
    further = {row for row in sources.not_asked_for if sources.rows[row].names and row not in failed}
    if not further:
        return []
    planned = sum(row // plan.shard_images in missing for row in further)
    are, they_are = agreeing(planned, "is", "are"), agreeing(planned, "it is", "they are")
    not_encoded = (
        f"; {planned} of them {are} planned only, and {are} not encoded before {they_are} asked for" if planned else ""
    )
    return [f"{path} holds {counted(len(further), 'further image')}, which this config does not name{not_encoded}"]
