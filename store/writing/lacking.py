"""What a store lacks of the images that a config names, and how the user is told."""

from collections.abc import Container, Sequence
from pathlib import Path

from store.layout.ids import ImageIds, first_names
from store.layout.plan import Plan
from store.log.commits import intact_records

NamedImage = tuple[str, list[str]]
"""An image: its id, in hex, and its names."""
ELSEWHERE = "extract into another folder (--run-dir), or replace this store with --overwrite"
"""What a user can do with a store that was made by something else than the config says."""
_SHOWN = 3


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
    """Tell whether all that `images` lack are names, which a later generation took away and of which it committed nothing.

    So a wrong --append that was stopped, of other files with the same names, does not stand in the way of the first files.
    """
    committed = {shard for number in range(stored.generation + 1) for shard in intact_records(path, number)}

    def is_free(name: str) -> bool:
        row = known.row_of_name(name)
        return row is not None and row // stored.shard_images not in committed

    return all(known.row_of_sha(sha) is not None and all(map(is_free, names)) for sha, names in images)


def refusal(path: Path, stored: Plan, known: ImageIds, images: Sequence[NamedImage], arrays: Sequence[str]) -> str:
    """Compose the message that a store lacks `images` and `arrays`; it names files that have changed since."""
    changed = [name for _, names in images for name in names if known.row_of_name(name) is not None]
    n_new = sum(any(known.row_of_name(name) is None for name in names) for _, names in images)
    lacking = ([f"{n_new} images"] if n_new else []) + [*arrays]
    said: list[str] = []
    if lacking:
        said += [f"{', '.join(lacking)} are not in it: add them with --append"]
    if changed:
        which, anew = ("image", "it anew beside the old one")
        if len(changed) > 1:
            which, anew = (f"{len(changed)} images,", "them anew beside the old ones")
        named = first_names(changed, _SHOWN)
        said += [f"{which} {named} changed since the store was made (other bytes): --append encodes {anew}"]
    return f"expected {path} to have all that this config names: {'; '.join(said)}; {what_else(path, stored)}"


def what_else(path: Path, stored: Plan, otherwise: str = f"or {ELSEWHERE}") -> str:
    """Name what a user can do with a store of another plan; `otherwise` is said of a store that has commits."""
    if any(intact_records(path, generation) for generation in range(stored.generation + 1)):
        return otherwise
    return "no shard of it is committed, so that --overwrite replaces it at no loss"
