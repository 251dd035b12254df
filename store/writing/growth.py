"""How a store grows: the plan of the next generation, and the plan that an extraction goes on with.

Appended images begin a new shard, an added array adds files to every shard, and a dropped array is no longer named. Earlier
shards, records and plans stay as they are.
"""

import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from configs.counted import counted
from store.errors import IntegrityError, StoreError
from store.layout.fingerprint import Fingerprint, require_equal
from store.layout.ids import ARRAYS, ImageIds
from store.layout.plan import FEATURES, Plan, Segment, newest_generation, plan_path, read_plan
from store.layout.schema import ArraySpec
from store.log.spare import known_digests, sound
from store.reading.opening import stored_ids
from store.writing.lacking import ELSEWHERE, SHOWN, NamedImage, can_be_taken_back, refusal, unknown_images

NO_IMAGE = "0" * 64
"""The id of rows between segments, which hold no image."""
AddedArray = tuple[ArraySpec, Fingerprint | None]
"""An array, and the fingerprint of what makes it."""
_log = logging.getLogger(__name__)


def plan_to_follow(
    path: Path, wanted: Plan, ids: ImageIds, unreadable: Container[str], append: bool
) -> tuple[Plan, ImageIds]:
    """Choose the plan and the ids with which an extraction goes on.

    Args:
        path: Folder of the store, which need not exist.
        wanted: The plan that the config asks for, as the plan of a first generation.
        ids: The ids that `wanted` was made for.
        unreadable: Names of images that cannot be read now; images of these names in the store stay as they are.
        append: Let the store grow if it lacks images or arrays.

    Returns:
        `wanted` itself if there is no store yet; the store's own plan if the store has all images and arrays, however many
        more it has; the plan of a new generation if the store lacks something and `append` is given, or if it lacks only
        names that a later generation took away, of which nothing is committed.

    Raises:
        StoreError: the store lacks something, and `append` is not given (exit 4).
        FingerprintMismatch: the store was made by something else (exit 4).
    """
    newest = newest_generation(path)
    if newest is None:
        return wanted, ids
    stored = _stored_plan(path, newest)
    if stored is None:
        return wanted, ids
    known = _known_ids(path, stored, ids, unreadable)
    _require_compatible(path, stored, wanted)
    images = [] if ids.digest() == known.digest() else unknown_images(known, ids, unreadable)
    arrays = [spec for spec in wanted.arrays if spec not in stored.arrays]
    if not images and not arrays:
        return stored, known
    if not append:
        if arrays or not can_be_taken_back(path, stored, known, images):
            raise StoreError(refusal(path, stored, known, images, [spec.name for spec in arrays]))
        _log.warning(
            "note: %s of %s get their names back; an --append that committed nothing had given these names to other images",
            counted(len(images), "image"), path,
        )  # fmt: skip
    return grown(stored, known, images, [(spec, wanted.fingerprints.get(spec.name)) for spec in arrays])


def _stored_plan(path: Path, newest: int) -> Plan | None:
    """Read a store's plan; None for a first plan without features, or if neither it nor its spare is as it was written.

    Raises IntegrityError (exit 4) if the plan of a later generation is damaged or was changed.
    """
    if newest == 0:
        return _first_plan(path) if (path / FEATURES).is_dir() else None
    stored, written = read_plan(path), known_digests(path, newest)
    if written and stored.digest not in written:
        raise IntegrityError(
            f"expected {plan_path(path, newest)} as it was written, it was changed: let `python -m store repair {path}` "
            "restore it"
        )
    return stored


def _first_plan(path: Path) -> Plan | None:
    """Read the plan of a store's first generation, from its spare if need be; None if neither is as it was written."""
    content = sound(path, 0).get(plan_path(path, 0))
    if content is not None:
        return Plan.model_validate_json(content)
    with suppress(IntegrityError):
        stored = read_plan(path)
        return stored if stored.digest in known_digests(path, 0) else None
    return None


def left_to_derive(plan: Plan, prints: Mapping[str, Fingerprint]) -> frozenset[str]:
    """Name the derived arrays that an extraction must not add to, because they were made elsewhere.

    Args:
        plan: The store's plan.
        prints: The fingerprints that these arrays would have if this extraction made them.
    """
    return frozenset(name for name in plan.derived if prints.get(name) != plan.fingerprints[name])


def grown(
    plan: Plan, ids: ImageIds, images: Sequence[NamedImage], arrays: Sequence[AddedArray], derived: bool = False
) -> tuple[Plan, ImageIds]:
    """Plan the next generation of a store, with more images and more arrays.

    A name that belonged to another image so far moves to the new image: the file of that name has changed.

    Args:
        plan: The store's newest plan.
        ids: The ids that `plan` was made for.
        images: Images to add; known images may be named again, with further names.
        arrays: Arrays to add.
        derived: Whether `arrays` are made from arrays of the store, rather than by a tower.

    Returns:
        The new plan, and the ids that it is made for.
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
    """Plan the next generation of a store, without the array `name`."""
    return _next(plan, {
        "arrays": tuple(spec for spec in plan.arrays if spec.name != name),
        "added": {other: generation for other, generation in plan.added.items() if other != name},
        "derived": tuple(other for other in plan.derived if other != name),
        "fingerprints": {other: made for other, made in plan.fingerprints.items() if other != name},
    })  # fmt: skip


def _next(plan: Plan, changes: dict[str, Any]) -> Plan:
    past = {"generation": plan.generation + 1, "earlier": (*plan.earlier, plan.digest)}
    return plan.model_copy(update=changes | past)


def _with_images(
    plan: Plan, ids: ImageIds, images: Sequence[NamedImage], generation: int
) -> tuple[dict[str, Any], ImageIds]:
    together, n_new = _joined(ids, images, plan.shard_images)
    segments = plan.parts
    if n_new:
        segments += (Segment(generation=generation, first_row=len(together) - n_new, n_images=n_new),)
    return {
        "segments": segments,
        "n_images": plan.n_images + n_new,
        "ids_group": f"ids_{generation}",
        "ids_digest": together.digest(),
    }, together


def _joined(ids: ImageIds, images: Sequence[NamedImage], shard_images: int) -> tuple[ImageIds, int]:
    """Add images, or names of known images, to ids; return the new ids and how many images are new.

    The new images begin at a shard boundary.
    """
    taken = {name for _, names in images for name in names}
    rows = [(ids.sha_of_row(row), [n for n in ids.names(row) if n not in taken]) for row in range(len(ids))]
    new: list[NamedImage] = []
    for sha, names in images:
        row = ids.row_of_sha(sha)
        if row is None:
            new.append((sha, names))
        else:  # known under other names
            rows[row][1].extend(names)
    if new:
        rows += [(NO_IMAGE, [])] * (-len(rows) % shard_images) + new
    return ImageIds.build(rows), len(new)


def _known_ids(path: Path, stored: Plan, ids: ImageIds, unreadable: Container[str]) -> ImageIds:
    """Read the ids of a store, or make damaged ids again from what is left of them, or from the images as they are named now.

    Ids that were made again are accepted only if their digest matches the plan's; otherwise raises IntegrityError (exit 4).
    """
    with suppress(IntegrityError):
        known = stored_ids(path, stored)
        known.columns(ARRAYS)  # reads every column, as all of them are to be written again
        return known
    for candidate in _remade(path, stored, ids, unreadable):
        if candidate.digest() == stored.ids_digest:
            return candidate
    folder = path / FEATURES / stored.ids_group
    raise IntegrityError(
        f"expected the ids in {folder} as in the plan, they are damaged, and neither what is left of them nor the images that "
        f"this config names make them again: restore {folder} from a copy, or extract into another folder (--run-dir)"
    )


def _remade(path: Path, stored: Plan, ids: ImageIds, unreadable: Container[str]) -> Iterator[ImageIds]:
    """Yield what the ids of a store may have been: what is left of them; the images as they are named now; for each
    earlier generation, its ids with the images that it lacks.
    """
    groups = ["ids", *(f"ids_{generation}" for generation in range(1, stored.generation + 1))]
    with suppress(IntegrityError):
        yield ImageIds.recovered(path / FEATURES / stored.ids_group)
    yield ids
    for group in groups[: groups.index(stored.ids_group)]:
        with suppress(IntegrityError):
            earlier = ImageIds.recovered(path / FEATURES / group)
            yield _joined(earlier, unknown_images(earlier, ids, unreadable), stored.shard_images)[0]


def _require_compatible(path: Path, stored: Plan, wanted: Plan) -> None:
    """Require that the arrays of both plans were made alike: an array has one maker.

    The numeric part of a derived array's fingerprint may differ; see `left_to_derive`.
    """
    for name in sorted(stored.fingerprints.keys() & wanted.fingerprints.keys()):
        parts = {"semantic"} if name in stored.derived else {"semantic", "numeric"}
        found, expected = (plan.fingerprints[name].model_dump(include=parts) for plan in (stored, wanted))
        require_equal(f"the fingerprint of {name} in {path}", expected, found, ELSEWHERE)
    stored_arrays = {spec.name: spec for spec in stored.arrays}
    differing = [spec.name for spec in wanted.arrays if stored_arrays.get(spec.name, spec) != spec]
    differing += [field for field in ("geometry", "identity") if getattr(stored, field) != getattr(wanted, field)]
    if differing:
        raise StoreError(
            f"{path} holds a store with other {', '.join(differing[:SHOWN])} than this config's: {ELSEWHERE}"
        )
