"""Verifying the small files of a store: plans, manifests, metadata, ids, projector and config."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from configs.errors import EXTRACT
from configs.files.seal import is_as_sealed
from store.care.rebuild import can_be_rebuilt, damaged_ids
from store.care.strays import strays
from store.errors import IntegrityError
from store.files.disk import Unreadable, content
from store.layout.manifest import file_digest, manifest_in, manifest_path, read_manifest
from store.layout.plan import CONFIG, FEATURES, Plan, plan_path, read_plan_file
from store.log.finding import ARCHIVE, COPY, MOVE, REPAIR, Finding
from store.log.progress import stored_codec
from store.log.spare import content_of, known_digests, sound

CHANGED = "changed or missing"
_BEFORE = f"{COPY}; it describes only an older generation, which no reader needs"


def small_files(store: Path, plan: Plan, quick: bool) -> Iterator[Finding]:
    """Report what is wrong with everything but shards and commit records; `quick` leaves out ids and projector."""
    for stray in strays(store, plan):
        yield Finding(str(stray), "it does not belong there", None, MOVE)
    for generation in range(plan.generation + 1):
        yield from _plans(store, plan, generation)
    yield from _config(store)
    if not quick:
        yield from _earlier_ids(store, plan)
    try:
        manifest = read_manifest(store, plan.generation)
    except IntegrityError:
        return  # reported already; without the manifest, nothing says what the other files should hold
    damaged = manifest.damaged(store / FEATURES, metadata_only=quick)
    rebuildable = can_be_rebuilt(store, plan, manifest, damaged)
    for name in damaged:
        remedy = REPAIR if name in rebuildable else _remedy(store, plan, name)
        yield Finding(str(store / FEATURES / name), CHANGED, None, remedy)


def _config(store: Path) -> Iterator[Finding]:
    """Report a damaged config of the extraction; a store that was not made by an extraction has no config."""
    path = store / CONFIG
    try:
        problem = None if is_as_sealed(content(path)) else CHANGED
    except FileNotFoundError:
        return
    except Unreadable as error:
        problem = str(error).removeprefix(f"{path} ")
    if problem is not None:
        yield Finding(str(path), problem, None, f"{EXTRACT} writes it again; otherwise {COPY}, or remove it")


def _earlier_ids(store: Path, plan: Plan) -> Iterator[Finding]:
    """Report damaged ids of generations before the newest; they are needed only to make damaged ids again."""
    seen = {plan.ids_group}
    for generation in range(plan.generation):
        try:
            manifest = read_manifest(store, generation)
            earlier = read_plan_file(plan_path(store, generation), COPY)
        except IntegrityError:
            continue  # reported already
        damaged = [] if earlier.ids_group in seen else damaged_ids(store, earlier, manifest)
        seen.add(earlier.ids_group)
        rebuildable = can_be_rebuilt(store, earlier, manifest, damaged)
        for name in damaged:
            yield Finding(str(store / FEATURES / name), CHANGED, None, REPAIR if name in rebuildable else _BEFORE)


def _plans(store: Path, plan: Plan, generation: int) -> Iterator[Finding]:
    """Report damaged plans, manifests and spares of a generation; stores of early versions have no spares."""
    planned, manifest = plan_path(store, generation), manifest_path(store, generation)
    sound_contents = sound(store, generation)
    for path, whole in sound_contents.items():
        if content_of(path) != whole and (os.path.lexists(path) or path in (planned, manifest)):
            yield Finding(str(path), CHANGED, None, REPAIR)
    if sound_contents:
        if (
            hashlib.sha256(sound_contents[planned]).hexdigest() != plan.digest_of(generation)
            and generation < plan.generation
        ):
            yield Finding(str(planned), "not the plan that later generations name", None, _BEFORE)
        return
    newest = generation == plan.generation
    extracted = f"{EXTRACT} with the same config and images writes it again; otherwise {COPY}"
    if not newest:
        trusted, remedies = {plan.digest_of(generation)}, (_BEFORE, _BEFORE)
    else:
        trusted = known_digests(store, generation) or {plan.digest}
        archived = stored_codec(store) != "none"
        remedies = (COPY if archived or generation else extracted, COPY if archived else extracted)
    if file_digest(planned) not in trusted:
        yield Finding(str(planned), CHANGED, None, remedies[0])
    if not _is_manifest_of(manifest, trusted):
        yield Finding(str(manifest), CHANGED, None, remedies[1])


def _is_manifest_of(path: Path, plans: set[str]) -> bool:
    with suppress(IntegrityError):
        return manifest_in(path).plan in plans
    return False


def _remedy(store: Path, plan: Plan, name: str) -> str:
    """Return the remedy for a file that cannot be written again from the store itself."""
    if stored_codec(store) != "none":
        return ARCHIVE
    if name.startswith(f"{plan.ids_group}/"):
        return f"{EXTRACT} writes it again if the image files are still those that were encoded; otherwise {COPY}"
    return f"{EXTRACT} writes it again"
