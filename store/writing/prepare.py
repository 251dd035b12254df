"""Writing what a store holds beside shards: plan, metadata, ids and projector, made, grown, or healed where damaged."""

import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from configs.files.atomic import PARTIAL, sync_directory
from store.errors import IntegrityError, StoreError
from store.files.disk import make_way
from store.layout.fingerprint import require_equal
from store.layout.ids import ImageIds
from store.layout.manifest import METADATA, make_manifest, read_manifest, write_manifest
from store.layout.plan import FEATURES, SPARE, Plan, plan_path, read_plan, write_plan
from store.layout.schema import ArraySpec, Codec, fill_value
from store.layout.shard import ZSTD_LEVEL
from store.layout.whole_arrays import write_whole
from store.log.progress import missing_parts, require_nothing_lost
from store.log.spare import content_of, known_digests, restore
from store.reading.projector_state import PROJECTOR, ProjectorState
from store.writing.lacking import ELSEWHERE, what_else

_log = logging.getLogger(__name__)


def prepare(
    path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None, codec: Codec = "none"
) -> None:  # fmt: skip
    """Write a store's plan, metadata, ids and projector if they are missing; write damaged ones again.

    The caller holds the store's lock. A `plan` of the generation after the store's newest makes the store grow.

    Raises:
        FingerprintMismatch: the store was made by something else (exit 4).
        StoreError: the store has another plan (exit 4).
        IntegrityError: committed files are lost, so that writing plans again would hide the loss (exit 4).
    """
    for file in restore(path):
        if not file.name.endswith(SPARE):
            _log.warning("note: %s was missing or damaged, it is restored from its spare", file)
    if plan.generation and read_plan(path).generation == plan.generation - 1:
        grow(path, plan, ids, projector)
        return
    if plan_path(path, plan.generation).exists():
        with suppress(IntegrityError):  # a damaged plan is written again if the rest of the store belongs to `plan`
            stored, written = read_plan(path), known_digests(path, plan.generation)
            if stored.digest in written or plan.digest not in written:
                _require_same(path, stored, plan)
    if not (path / FEATURES).is_dir():
        require_nothing_lost(path, plan)
        _create(path, plan, ids, projector, codec)
        return
    try:
        healthy = content_of(plan_path(path, plan.generation)) == plan.to_json().encode()
        healthy &= not read_manifest(path, plan.generation).damaged(path / FEATURES)
    except IntegrityError:
        healthy = False
    if not healthy:
        _heal(path, plan, ids, projector)


def grow(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Make `plan` the newest generation of a store; the caller holds the store's lock.

    If the process is killed before the plan is written, nothing has happened; if it is killed afterwards, the next extraction
    brings the metadata up to date.
    """
    aside = build(_aside(path), plan, ids, projector)
    manifest = make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays])
    current = read_manifest(path, plan.generation - 1).files
    _install(path, aside, [name for name in manifest.files if name not in current])
    write_manifest(path, plan.generation, manifest)
    write_plan(path, plan)
    _install(path, aside, manifest.damaged(path / FEATURES))
    shutil.rmtree(aside)


def _create(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None, codec: Codec) -> None:
    """Write the plan, then build `features.zarr` aside and rename it, so that the folder is whole or absent."""
    write_plan(path, plan)
    aside = build(_aside(path), plan, ids, projector, codec)
    write_manifest(path, plan.generation, make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays]))
    make_way(path, path / FEATURES / METADATA)
    aside.rename(path / FEATURES)
    sync_directory(path)


def _heal(path: Path, plan: Plan, ids: ImageIds, projector: ProjectorState | None) -> None:
    """Write damaged files again, after checking that the commit log belongs to this plan."""
    missing_parts(path, plan)
    aside = build(_aside(path), plan, ids, projector)
    manifest = make_manifest(aside, plan.digest, [spec.name for spec in plan.arrays])
    damaged = manifest.damaged(path / FEATURES)
    for name in damaged:
        _log.warning("note: %s was damaged, it is written again", path / FEATURES / name)
    if content_of(plan_path(path, plan.generation)) != plan.to_json().encode():
        _log.warning("note: %s was missing or damaged, it is written again", plan_path(path, plan.generation))
    _install(path, aside, damaged)
    write_manifest(path, plan.generation, manifest)
    write_plan(path, plan)
    shutil.rmtree(aside)


def _install(path: Path, aside: Path, names: Iterable[str]) -> None:
    """Move files from `aside` into `features.zarr`, over files of the same name."""
    for name in names:
        target = path / FEATURES / name
        make_way(path, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        (aside / name).replace(target)
        sync_directory(target.parent)


def _aside(path: Path) -> Path:
    """Return the path to build `features.zarr` at before it is moved; removes what a killed process left there."""
    aside = path / (FEATURES + PARTIAL)
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def build(
    aside: Path, plan: Plan, ids: ImageIds | None, projector: ProjectorState | None, codec: Codec = "none"
) -> Path:  # fmt: skip
    """Build a folder like `features.zarr`, without shards.

    Args:
        aside: The folder to create.
        plan: The plan, from which the metadata follows.
        ids: The ids; None leaves them out.
        projector: The projector; None leaves it out.
        codec: How the shards are compressed.

    Returns:
        The folder.
    """
    library: Any = zarr  # typed in part
    group: zarr.Group = library.create_group(aside, attributes={"encode_once_format": plan.format})
    for spec in plan.arrays:
        _create_array(group, spec, plan, codec)
    if ids is not None:
        ids.write(group, plan.ids_group)
    if projector is not None:
        attributes = {"kind": projector.kind, "config": projector.config, "sha256": projector.sha256}
        weights = group.create_group(PROJECTOR, attributes=attributes)
        for name in sorted(projector.weights):
            created = write_whole(weights, name, projector.weights[name], fill_value(projector.dtypes[name]))
            created.attrs["logical_dtype"] = projector.dtypes[name]
    return aside


def _create_array(group: zarr.Group, spec: ArraySpec, plan: Plan, codec: Codec) -> None:
    inner = 1 if spec.per_image_chunks else plan.shard_images
    group.create_array(
        spec.name,
        shape=(plan.n_rows, *spec.shape),
        dtype=spec.storage,
        chunks=(inner, *spec.shape),
        shards=(plan.shard_images, *spec.shape),
        compressors=[*([ZstdCodec(level=ZSTD_LEVEL)] if codec == "zstd" else []), Crc32cCodec()],
        fill_value=spec.fill,
        dimension_names=("image" if plan.maker == "extract" else "row", *spec.axes),
        attributes={"logical_dtype": spec.dtype, **spec.attributes},
    )


def _require_same(path: Path, stored: Plan, wanted: Plan) -> None:
    """Require that a store has the wanted plan; the error names what differs, fingerprints field by field."""
    for name in sorted({*stored.fingerprints} & {*wanted.fingerprints}):
        found, expected = stored.fingerprints[name].model_dump(), wanted.fingerprints[name].model_dump()
        require_equal(f"the fingerprint of {name} in {path}", expected, found, ELSEWHERE)
    stored_names = {spec.name for spec in stored.arrays}
    absent = [spec.name for spec in wanted.arrays if spec.name not in stored_names]
    if absent:
        raise StoreError(
            f"expected {', '.join(absent)} among the arrays of {path}, the store does not have them: add them with --append, "
            f"or {ELSEWHERE}"
        )
    if stored != wanted:
        differing = [
            f"{field} (stored {_short(getattr(stored, field))}, wanted {_short(getattr(wanted, field))})"
            for field in Plan.model_fields
            if getattr(stored, field) != getattr(wanted, field)
        ]
        advice = what_else(path, stored, f"add what it does not have with --append, {ELSEWHERE}")
        raise StoreError(f"{path} holds a store of another plan: {'; '.join(differing)}; {advice}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
