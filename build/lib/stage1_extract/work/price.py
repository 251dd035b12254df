"""What an extraction will cost, said before it is paid."""

import shutil
from pathlib import Path
from typing import Any

from stage1_extract.encoding.family import Description
from stage1_extract.sources import Sources
from store.errors import NoSpace
from store.layout.ids import printable
from store.layout.plan import Plan


def free_bytes(path: Path) -> int:
    """Free space on the disk that `path` is, or will be, on."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def price(plan: Plan, sources: Sources, description: Description, path: Path) -> dict[str, Any]:
    """Images, shards, bytes per array, free space."""
    return {
        "images": sources.names,
        "distinct": len(sources.rows),
        "unreadable": dict(sources.unreadable),
        "shards": plan.n_shards,
        "images_per_shard": plan.shard_images,
        "bytes": {spec.name: spec.row_bytes * plan.n_rows for spec in plan.arrays},
        "bytes_per_image": {spec.name: spec.row_bytes for spec in plan.arrays},
        "bytes_total": plan.total_bytes,
        "bytes_free": free_bytes(path),
        "notes": list(description.notes),
    }


def as_text(found: dict[str, Any], path: Path) -> str:
    """The price for a reader."""
    lines = [
        f"{found['images']} images, {found['distinct']} distinct, in {found['shards']} shards of {found['images_per_shard']}",
        f"{found['bytes_total'] / 1e9:.3f} GB to write to {path}; {found['bytes_free'] / 1e9:.1f} GB free",
    ]
    each = found["bytes_per_image"]
    lines += [
        f"  {name:<24}{size / 1e9:>12.3f} GB{each[name]:>14,} bytes an image" for name, size in found["bytes"].items()
    ]
    lines += [f"cannot be read: {printable(name)} ({reason})" for name, reason in found["unreadable"].items()]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def require_space(needed: int, path: Path) -> None:
    """Raise NoSpace (exit 7) before any work is done for a store that cannot fit."""
    free = free_bytes(path)
    if needed > free:
        raise NoSpace(
            f"expected {needed:,} bytes for what is missing of {path}, {free:,} are free: make room, then run again"
        )
