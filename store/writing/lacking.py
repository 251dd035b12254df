"""What a store lacks of the images that a config names, and how the user is told."""

from collections.abc import Container, Sequence
from pathlib import Path

from configs.counted import agreeing, counted
from store.layout.ids import ImageIds, first_names
from store.layout.plan import Plan
from store.log.commits import intact_records

NamedImage = tuple[str, list[str]]
"""An image: its id, in hex, and its names."""
ELSEWHERE = "extract into another folder (--run-dir), or replace this store with --overwrite"
"""What a user can do with a store that was made by something else than the config says."""
SHOWN = 3
"""How many names a message lists."""


def unknown_images(known: ImageIds, ids: ImageIds, unreadable: Container[str]) -> list[NamedImage]:
    """List the images that a store lacks, or does not know under all their names.

    Args:
        known: Ids of the store.
        ids: Ids of the images that the config names.
        unreadable: Names of images that cannot be read now; if the store knows such a name, it lacks nothing.
    """

    def is_known(name: str, row: int | None) -> bool:
        known_row = known.row_of_name(name)
        return known_row is not None and (known_row == row or name in unreadable)

    unknown: list[NamedImage] = []
    for row in range(len(ids)):
        known_row = known.row_of_sha(ids.sha_of_row(row))
        names = [name for name in ids.names(row) if not is_known(name, known_row)]
        if names:
            unknown.append((ids.sha_of_row(row), names))
    return unknown


def can_be_taken_back(path: Path, stored: Plan, known: ImageIds, images: Sequence[NamedImage]) -> bool:
    """Tell whether the store has all `images`, and lacks only names that an --append moved to images that it never committed.

    So a wrong --append of other files with the same names, stopped before it committed them, does not block the first files.
    """
    committed = {shard for number in range(stored.generation + 1) for shard in intact_records(path, number)}

    def is_free(name: str) -> bool:
        row = known.row_of_name(name)
        if row is None or row // stored.shard_images in committed:
            return False
        return stored.segment_of(row).generation > 0

    return all(known.row_of_sha(sha) is not None and all(map(is_free, names)) for sha, names in images)


def refusal(path: Path, stored: Plan, known: ImageIds, images: Sequence[NamedImage], arrays: Sequence[str]) -> str:
    """Compose the message that a store lacks `images` and `arrays`; it names files that have changed since."""
    named = [(name, known.row_of_sha(sha) is not None) for sha, names in images for name in names]
    changed = [(name, is_stored) for name, is_stored in named if known.row_of_name(name) is not None]
    anew, moved = ([name for name, is_stored in changed if is_stored == moves] for moves in (False, True))
    n_new = sum(
        known.row_of_sha(sha) is None and any(known.row_of_name(name) is None for name in names)
        for sha, names in images
    )
    n_names = sum(is_stored and known.row_of_name(name) is None for name, is_stored in named)
    lacking = [counted(n_new, "image")] * (n_new > 0)
    lacking += [counted(n_names, "further name") + " of its images"] * (n_names > 0)
    lacking += arrays
    clauses: list[str] = []
    if lacking:
        n_lacking = n_new + n_names + len(arrays)
        are, them = agreeing(n_lacking, "is", "are"), agreeing(n_lacking, "it", "them")
        clauses += [f"{', '.join(lacking)} {are} not in it: add {them} with --append"]
    if anew:
        them = agreeing(len(anew), "it anew beside the old one", "them anew beside the old ones")
        clauses += [f"{_images(anew)} changed since the store was made (other bytes): --append encodes {them}"]
    if moved:
        singular = "has the bytes of another image of it: --append moves the name to that image and encodes nothing"
        plural = "have the bytes of other images of it: --append moves the names to those images and encodes nothing"
        clauses += [f"{_images(moved)} now {agreeing(len(moved), singular, plural)}"]
    return f"expected {path} to have all that this config names: {'; '.join(clauses)}; {what_else(path, stored)}"


def _images(names: Sequence[str]) -> str:
    return f"{'image' if len(names) == 1 else counted(len(names), 'image') + ','} {first_names(names, SHOWN)}"


def what_else(path: Path, stored: Plan, otherwise: str = f"or {ELSEWHERE}") -> str:
    """Name what a user can do with a store of another plan; `otherwise` is said of a store that has commits."""
    if any(intact_records(path, generation) for generation in range(stored.generation + 1)):
        return otherwise
    return "no shard of it is committed, so that --overwrite replaces it at no loss"
