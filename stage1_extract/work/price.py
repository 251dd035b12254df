"""What an extraction will cost in images, shards and bytes, said before any work is done."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.counted import counted
from stage1_extract.encoding.family import Description
from stage1_extract.sources import Sources
from stage1_extract.work import measuring
from store.errors import NoSpace
from store.files.disk import existing_folder
from store.layout.ids import printable
from store.layout.plan import Plan
from store.log.progress import bytes_of


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds `path`, or will hold it."""
    return shutil.disk_usage(existing_folder(path)).free


def price(
    plan: Plan,
    parts: Sequence[tuple[int, int]],
    sources: Sources,
    description: Description,
    path: Path,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the images, shards, bytes per array and free bytes of an extraction, as JSON-able values.

    Args:
        plan: The plan to follow.
        parts: Generation and shard of each part that is to be written.
        sources: The images that are asked for.
        description: What the tower makes.
        path: Folder of the store.
        notes: Further sentences for the user.
    """
    sizes = {spec.name: 0 for spec in plan.arrays}
    for generation, shard in parts:
        for spec in plan.arrays_of(generation, shard):
            sizes[spec.name] += spec.row_bytes * len(plan.rows(shard))
    return {
        "images": sources.names,
        "distinct": len(sources.rows),
        "unreadable": dict(sources.unreadable),
        "shards": len({shard for _, shard in parts}),
        "images_per_shard": plan.shard_images,
        "bytes": sizes,
        "bytes_per_image": {spec.name: spec.row_bytes for spec in plan.arrays},
        "bytes_total": bytes_of(plan, parts),
        "bytes_free": free_bytes(path),
        "notes": [*description.notes, *notes],
    }


def as_text(costs: dict[str, Any], path: Path) -> str:
    """Write the result of `price` as lines of text."""
    lines = [
        f"{counted(costs['images'], 'image')}, {costs['distinct']:,} distinct, {counted(costs['shards'], 'shard')} of "
        f"{costs['images_per_shard']:,} to write",
        f"{costs['bytes_total'] / 1e9:.3f} GB to write to {path}; {costs['bytes_free'] / 1e9:.1f} GB free",
    ]
    per_image = costs["bytes_per_image"]
    lines += [
        f"  {name:<24}{size / 1e9:>12.3f} GB{per_image[name]:>14,} bytes an image"
        for name, size in costs["bytes"].items()
    ]
    lines += [f"cannot be read: {printable(name)} ({reason})" for name, reason in costs["unreadable"].items()]
    if "measured" in costs:
        lines.append(measuring.as_text(costs["measured"]))
    return "\n".join([*lines, *(f"note: {note}" for note in costs["notes"])])


def require_space(needed: int, path: Path) -> None:
    """Raise NoSpace (exit 7) if the bytes that the store still lacks do not fit on its disk."""
    free = free_bytes(path)
    if needed > free:
        raise NoSpace(
            f"expected {needed:,} bytes of free space for the missing part of {path}, {free:,} are free: make room, then run "
            "again"
        )
