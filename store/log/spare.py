"""Plans and manifests lie in a store twice, and vouch for each other: a damaged one is restored from what is left."""

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
    """What the plan, the manifest and their spares of a generation are to hold; nothing where no two of them fit together."""
    plan, manifest = plan_path(store, generation), manifest_path(store, generation)
    for one, other in product((manifest, spare_of(manifest)), (plan, spare_of(plan))):
        with suppress(IntegrityError):
            content = content_of(other)
            if content is not None and manifest_in(one).plan == hashlib.sha256(content).hexdigest():
                described = one.read_bytes()
                return {plan: content, spare_of(plan): content, manifest: described, spare_of(manifest): described}
    return {}


def known_digests(store: Path, generation: int) -> set[str]:
    """What the digest of a plan is by its manifest, or else by the commits that were made for it; empty if neither says."""
    with suppress(IntegrityError):
        return {read_manifest(store, generation).plan}
    return intact_records(store, generation).plan_digests


def differing(store: Path) -> dict[Path, bytes]:
    """Files of all generations that are not what they are to hold, with that."""
    newest = newest_generation(store)
    found: dict[Path, bytes] = {}
    for generation in range(0 if newest is None else newest + 1):
        for path, content in sound(store, generation).items():
            if content_of(path) != content:
                found[path] = content
    return found


def restore(store: Path) -> list[Path]:
    """Write what differs again; the caller is alone in the store."""
    found = differing(store)
    for path, content in found.items():
        make_way(store, path)
        write_atomically(path, content)
    return [*found]


def content_of(path: Path) -> bytes | None:
    """What a file holds; None if there is no such file, or it cannot be read."""
    try:
        return disk.content(path)
    except (FileNotFoundError, Unreadable):
        return None
