"""What a store owns in its folder: only this is removed with the store, and a folder that holds anything else is no store."""

import shutil
from pathlib import Path

from configs.files.atomic import PARTIAL
from store.errors import TargetExists
from store.files.disk import STRAYS, listed
from store.layout.ids import first_names
from store.layout.plan import CONFIG, FEATURES, PLAN, newest_generation
from store.log.commits import LOCK as COMMITS_LOCK
from store.log.compacted import FOLDER as COMMITS
from store.log.leases import FOLDER as LEASES
from store.log.leases import PROBE
from store.writing.lock import HOLDER, LOCK, lock
from store.writing.retry import FOLDER as RETRIED

_PLANS = Path(PLAN).parent.name
_MARKS = frozenset({_PLANS, COMMITS, FEATURES})
"""Any of these makes a folder a store, though perhaps a damaged one."""
_BESIDE = frozenset({LOCK, HOLDER, COMMITS_LOCK, LEASES, RETRIED})
"""What a killed process may leave in a folder before it is a store."""
_IN_ORDER = (CONFIG, RETRIED, COMMITS, FEATURES, LEASES, _PLANS, COMMITS_LOCK, HOLDER, LOCK)
"""The order of removal: commits go before features, and plans last, so that a killed removal is still a sound store."""
_SHOWN = 3


def require_store_or_empty(path: Path) -> None:
    """Raise TargetExists (exit 2) for a folder that holds something and is no store."""
    entries = listed(path) if path.is_dir() else []
    if any(entry.name in _MARKS for entry in entries):
        return
    others = [entry.name for entry in entries if not (entry.name in _BESIDE | {STRAYS} or _is_partial(entry.name))]
    if others:
        raise TargetExists(
            f"store.path: expected an empty folder or a store at {path}, it holds {first_names(others, _SHOWN)}: "
            "name another path"
        )


def remove_store(path: Path, stall_seconds: float) -> None:
    """Remove the store at `path`, if there is one, and its folder if nothing else lies there.

    Raises StoreLocked (exit 6) if another process writes to the store.
    """
    if newest_generation(path) is None:
        return
    with lock(path, "exclusive", stall_seconds):
        partial = [entry.name for entry in listed(path) if _is_partial(entry.name)]
        for name in (*partial, *_IN_ORDER):
            entry = path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        if not path.is_symlink() and not listed(path):
            path.rmdir()


def _is_partial(name: str) -> bool:
    """Accept the names of what this project was writing when it was killed, and of files that a network disk keeps a while."""
    hidden = name.startswith(".") and name.endswith(PARTIAL)
    return hidden or name == FEATURES + PARTIAL or name.startswith((PROBE, ".nfs"))
