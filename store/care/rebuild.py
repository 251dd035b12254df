"""Writing again what follows from the rest of a store, without an image or a checkpoint: metadata, and indices of ids."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from configs.files.atomic import write_atomically
from store.errors import IntegrityError
from store.files.disk import make_way
from store.layout.ids import ImageIds
from store.layout.manifest import Manifest, file_digest, read_manifest
from store.layout.plan import FEATURES, Plan, plan_path, read_plan, read_plan_file
from store.log.progress import stored_codec
from store.log.scratch import scratch
from store.writing.prepare import build


def can_be_rebuilt(store: Path, plan: Plan, manifest: Manifest, damaged: Iterable[str]) -> set[str]:
    """Return the `damaged` files below `features.zarr` that can be written again as they were, bit for bit."""
    with _rebuilt(store, plan, manifest, damaged) as (_, names):
        return {*names}


def rebuild(store: Path) -> list[Path]:
    """Write damaged files again where the rest of the store suffices; return their paths. The caller holds the store's lock."""
    newest = read_plan(store)
    written: list[Path] = []
    for generation in range(newest.generation + 1):
        with suppress(IntegrityError):  # `verify` reports a damaged plan or manifest
            manifest, plan = read_manifest(store, generation), read_plan_file(plan_path(store, generation), "")
            is_newest = generation == newest.generation
            damaged = manifest.damaged(store / FEATURES) if is_newest else damaged_ids(store, plan, manifest)
            written += _rebuild(store, plan, manifest, damaged)
    return written


def damaged_ids(store: Path, plan: Plan, manifest: Manifest) -> list[str]:
    """Name the ids files of a generation that are not as they were written."""
    names = [name for name in manifest.files if name.startswith(f"{plan.ids_group}/")]
    return [name for name in names if file_digest(store / FEATURES / name) != manifest.files[name]]


def _rebuild(store: Path, plan: Plan, manifest: Manifest, damaged: Iterable[str]) -> list[Path]:
    with _rebuilt(store, plan, manifest, damaged) as (aside, names):
        for name in names:
            make_way(store, store / FEATURES / name)
            write_atomically(store / FEATURES / name, (aside / name).read_bytes())
        return [store / FEATURES / name for name in names]


@contextmanager
def _rebuilt(
    store: Path, plan: Plan, manifest: Manifest, damaged: Iterable[str]
) -> Generator[tuple[Path, list[str]], None, None]:
    """Build damaged files again in a temporary folder.

    Yields the folder, and the names of those files whose content is what the manifest says.
    """
    wanted = [*damaged]
    with scratch("encode-once") as folder:
        aside = folder / "features"
        if wanted:
            with_ids = any(name.startswith(f"{plan.ids_group}/") for name in wanted)
            build(aside, plan, _ids(store, plan) if with_ids else None, None, stored_codec(store))
        yield aside, [name for name in wanted if file_digest(aside / name) == manifest.files[name]]


def _ids(store: Path, plan: Plan) -> ImageIds | None:
    """Make the ids again from what is left of their files; None unless the result is what the plan says."""
    with suppress(IntegrityError):
        ids = ImageIds.recovered(store / FEATURES / plan.ids_group)
        return ids if ids.digest() == plan.ids_digest else None
    return None
