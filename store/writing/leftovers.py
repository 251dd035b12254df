"""Removing what killed writers left in a store."""

import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from configs.files.atomic import PARTIAL
from store.log.leases import FOLDER as LEASES
from store.log.leases import PROBE, TAKEN_AWAY, disk_time


def sweep(path: Path, idle_seconds: float) -> None:
    """Remove what killed writers left: half-written files, probes of the clock, leases that were being taken away.

    Args:
        path: Folder of the store.
        idle_seconds: Spare everything that was touched within this many seconds: a living worker may still use it.
    """
    now = disk_time(path)
    for leftover in [entry for entry in path.rglob("*") if _is_leftover(entry)]:
        with suppress(FileNotFoundError):  # a living worker may finish its own file meanwhile
            if now - leftover.lstat().st_mtime < idle_seconds:
                continue
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink()


def _is_leftover(path: Path) -> bool:
    taken_away = path.parent.name == LEASES and fnmatchcase(path.name, TAKEN_AWAY)
    return path.name.endswith(PARTIAL) or path.name.startswith(PROBE) or taken_away
