"""Restore damaged plans and manifests: each has a spare copy, and a manifest holds the digest of its plan."""

import hashlib
from contextlib import suppress
from itertools import product
from pathlib import Path

from configs.files.atomic import write_atomically
from store.errors import IntegrityError
from store.files import disk
from store.files.disk import Unreadable, make_way
from store.layout.manifest import manifest_in, manifest_path, read_manifest
from store.layout.plan import newest_generation, plan_path, spare_of
from store.log.commits import intact_records


def sound(store: Path, generation: int) -> dict[Path, bytes]:
    """Find what the plan, the manifest and their spares of a generation should hold.

    Returns:
        The content of each of the four files; nothing if no plan fits to any manifest.
    """
    plan, manifest = plan_path(store, generation), manifest_path(store, generation)
    for manifest_file, plan_file in product((manifest, spare_of(manifest)), (plan, spare_of(plan))):
        with suppress(IntegrityError):
            planned = content_of(plan_file)
            if planned is not None and manifest_in(manifest_file).plan == hashlib.sha256(planned).hexdigest():
                listed = manifest_file.read_bytes()
                return {plan: planned, spare_of(plan): planned, manifest: listed, spare_of(manifest): listed}
    return {}


def known_digests(store: Path, generation: int) -> set[str]:
    """Return the digest that a plan should have by its manifest, or else by its commits, which may name several.

    Empty if the manifest is damaged and there are no commits.
    """
    with suppress(IntegrityError):
        return {read_manifest(store, generation).plan}
    return intact_records(store, generation).plan_digests


def differing(store: Path) -> dict[Path, bytes]:
    """Map every plan, manifest and spare that differs from its `sound` content to that content."""
    newest = newest_generation(store)
    generations = range(0 if newest is None else newest + 1)
    contents = {path: content for generation in generations for path, content in sound(store, generation).items()}
    return {path: content for path, content in contents.items() if content_of(path) != content}


def restore(store: Path) -> list[Path]:
    """Restore every file that `differing` lists, and return their paths. The caller holds the store's lock."""
    contents = differing(store)
    for path, content in contents.items():
        make_way(store, path)
        write_atomically(path, content)
    return [*contents]


def content_of(path: Path) -> bytes | None:
    """Read a file; None if there is no such file, or it cannot be read."""
    try:
        return disk.content(path)
    except (FileNotFoundError, Unreadable):
        return None
