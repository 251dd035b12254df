"""How a store grows: the plan of the next generation, and which plan an extraction goes on with.

Appended images begin a new shard, an added array adds files to every shard, a dropped one is no longer named. Earlier
shards, records and plans stay as they are.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from store.errors import IntegrityError, StoreError
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.ids import ARRAYS, ImageIds
from store.layout.plan import FEATURES, Plan, Segment, newest_generation, read_plan
from store.layout.schema import ArraySpec
from store.reading.opening import stored_ids

NO_IMAGE = "0" * 64
"""The id of rows between segments."""
Named = tuple[str, list[str]]
"""An image: its id, in hex, and its names."""
Made = tuple[ArraySpec, Fingerprint | None]
"""An array, and what made it."""
_SHOWN = 5


def plan_to_follow(
    path: Path, wanted: Plan, ids: ImageIds, unreadable: Container[str], append: bool
) -> tuple[Plan, ImageIds]:
    """The plan and ids with which a store at `path` serves what is `wanted` (the plan of a first generation).

    That is `wanted` itself where there is no store yet; the store's own plan where it has all the images and arrays; with
    `append` that of a new generation which adds what it does not have. Images of `unreadable` names that the store has stay
    as they are. Raises StoreError (exit 4) without `append`, and
    FingerprintMismatch (exit 4) where the store was made by something else.
    """
    newest = newest_generation(path)
    if newest is None:
        return wanted, ids
    try:
        stored = read_plan(path)
    except IntegrityError:
        if newest:
            raise
        return wanted, ids  # a first plan is written again where the log was written for it
    if stored.generation == 0 and not append:
        return wanted, ids
    known = _known_ids(path, stored, ids, unreadable)
    _require_compatible(path, stored, wanted)
    images = _unknown_images(known, ids, unreadable)
    arrays = [spec for spec in wanted.arrays if spec not in stored.arrays]
    if not images and not arrays:
        return stored, known
    if not append:
        named = ", ".join([f"{len(images)} images", *(spec.name for spec in arrays)])
        raise StoreError(
            f"expected {path} to have all that this config names, {named} are not in it: add them with --append"
        )
    return grown(stored, known, images, [(spec, wanted.fingerprints.get(spec.name)) for spec in arrays])


def left_to_derive(plan: Plan, prints: Mapping[str, Fingerprint]) -> frozenset[str]:
    """Derived arrays that an extraction which would make them by `prints` must not add to: they were made elsewhere."""
    return frozenset(name for name in plan.derived if prints.get(name) != plan.fingerprints[name])


def grown(
    plan: Plan, ids: ImageIds, images: Sequence[Named], arrays: Sequence[Made], derived: bool = False
) -> tuple[Plan, ImageIds]:
    """The next generation: with more images, and more arrays, which may be `derived` from those that are there.

    A name that another image had is the new one's: its file has changed.
    """
    generation = plan.generation + 1
    changes: dict[str, Any] = {
        "arrays": (*plan.arrays, *(spec for spec, _ in arrays)),
        "added": plan.added | {spec.name: generation for spec, _ in arrays},
        "derived": (*plan.derived, *(spec.name for spec, _ in arrays if derived)),
        "fingerprints": plan.fingerprints | {spec.name: made for spec, made in arrays if made is not None},
    }
    if images:
        more, ids = _with_images(plan, ids, images, generation)
        changes |= more
    return _next(plan, changes), ids


def without(plan: Plan, name: str) -> Plan:
    """The next generation, which has an array less."""
    return _next(plan, {
        "arrays": tuple(spec for spec in plan.arrays if spec.name != name),
        "added": {one: when for one, when in plan.added.items() if one != name},
        "derived": tuple(one for one in plan.derived if one != name),
        "fingerprints": {one: made for one, made in plan.fingerprints.items() if one != name},
    })  # fmt: skip


def _next(plan: Plan, changes: dict[str, Any]) -> Plan:
    past = {"generation": plan.generation + 1, "earlier": (*plan.earlier, plan.digest)}
    return plan.model_copy(update=changes | past)


def _with_images(
    plan: Plan, ids: ImageIds, images: Sequence[Named], generation: int
) -> tuple[dict[str, Any], ImageIds]:
    together, fresh = _joined(ids, images, plan.shard_images)
    segments = plan.parts
    if fresh:
        segments += (Segment(generation=generation, first_row=len(together) - fresh, n_images=fresh),)
    return {
        "segments": segments,
        "n_images": plan.n_images + fresh,
        "ids_group": f"ids_{generation}",
        "ids_digest": together.digest(),
    }, together


def _joined(ids: ImageIds, images: Sequence[Named], shard_images: int) -> tuple[ImageIds, int]:
    """The ids with more images, or more names, and how many images are new; these begin at a shard boundary."""
    taken = {name for _, names in images for name in names}
    rows = [(ids.sha_of_row(row), [n for n in ids.names(row) if n not in taken]) for row in range(len(ids))]
    fresh: list[Named] = []
    for sha, names in images:
        row = ids.row_of_sha(sha)
        if row is None:
            fresh.append((sha, names))
        else:  # known under other names
            rows[row][1].extend(names)
    if fresh:
        rows += [(NO_IMAGE, [])] * (-len(rows) % shard_images) + fresh
    return ImageIds.build(rows), len(fresh)


def _known_ids(path: Path, stored: Plan, ids: ImageIds, unreadable: Container[str]) -> ImageIds:
    """The ids of a store; where they are damaged, made again of what is left of them, or of its images as they are named now.

    The digest in the plan says whether that are they. Raises IntegrityError (exit 4) if not.
    """
    with suppress(IntegrityError):
        known = stored_ids(path, stored)
        known.columns(ARRAYS)  # all of them, as they are to be written again
        return known
    for made in _remade(path, stored, ids, unreadable):
        if made.digest() == stored.ids_digest:
            return made
    folder = path / FEATURES / stored.ids_group
    raise IntegrityError(
        f"expected the ids in {folder} as in the plan, they are damaged, and neither what is left of them nor the images that "
        f"this config names make them again: restore {folder} from a copy, or extract into another folder (--run-dir)"
    )


def _remade(path: Path, stored: Plan, ids: ImageIds, unreadable: Container[str]) -> Iterator[ImageIds]:
    """What the ids of a store may be: what is left of them; the images as they are named now; those after earlier ids."""
    groups = ["ids", *(f"ids_{generation}" for generation in range(1, stored.generation + 1))]
    with suppress(IntegrityError):
        yield ImageIds.recovered(path / FEATURES / stored.ids_group)
    yield ids
    for group in groups[: groups.index(stored.ids_group)]:
        with suppress(IntegrityError):
            before = ImageIds.recovered(path / FEATURES / group)
            yield _joined(before, _unknown_images(before, ids, unreadable), stored.shard_images)[0]


def _unknown_images(known: ImageIds, ids: ImageIds, unreadable: Container[str]) -> list[Named]:
    """Images that a store does not have, or not under all their names."""

    def is_known(name: str, row: int | None) -> bool:
        there = known.row_of_name(name)
        return there is not None and (there == row or name in unreadable)

    unknown: list[Named] = []
    for row in range(len(ids)):
        there = known.row_of_sha(ids.sha_of_row(row))
        names = [name for name in ids.names(row) if not is_known(name, there)]
        if names:
            unknown.append((ids.sha_of_row(row), names))
    return unknown


def _require_compatible(path: Path, stored: Plan, wanted: Plan) -> None:
    """What both have must be made alike: one array, one maker. Derived arrays may have other bits; see `left_to_derive`."""
    advice = "extract into another folder (--run-dir), or replace this store with --overwrite"
    for name in sorted(stored.fingerprints.keys() & wanted.fingerprints.keys()):
        parts = {"semantic"} if name in stored.derived else {"semantic", "numeric"}
        found, expected = (one.fingerprints[name].model_dump(include=parts) for one in (stored, wanted))
        require_equal(f"the fingerprint of {name} in {path}", expected, found, advice)
    there = {spec.name: spec for spec in stored.arrays}
    differing = [spec.name for spec in wanted.arrays if there.get(spec.name, spec) != spec]
    differing += [field for field in ("geometry", "identity") if getattr(stored, field) != getattr(wanted, field)]
    if differing:
        raise StoreError(
            f"{path} holds a store with other {', '.join(differing[:_SHOWN])} than this config's: {advice}"
        )
