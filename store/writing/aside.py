"""Writing a file or a folder beside its final path, and moving it there when it is whole."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from configs.files.atomic import PARTIAL, sync_directory
from store.errors import TargetExists
from store.log.scratch import owned_name, remove_of_the_dead


@contextmanager
def written_aside(target: Path, overwrite: bool = False) -> Generator[Path, None, None]:
    """Yield a path to write a file or a folder to; it becomes `target`, durably, if the block ends without an error.

    A killed process leaves at most `<target>.….partial`, which the next call removes.

    Args:
        target: Where the file or folder is to lie.
        overwrite: Replace a file at `target`; a folder is never replaced.

    Raises:
        TargetExists: something lies at `target` and is not to be replaced (exit 2).
    """
    if os.path.lexists(target) and (target.is_dir() or not overwrite):
        advice = "name another, or remove it first" if target.is_dir() else "name another, or add --overwrite"
        raise TargetExists(f"expected a new {target}, it exists: {advice}")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_of_the_dead(target.parent, target.name, PARTIAL)
    aside = target.with_name(owned_name(target.name) + PARTIAL)
    try:
        yield aside
        _sync(aside)
        aside.replace(target)
    except BaseException:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def _sync(path: Path) -> None:
    """Make a file, or a folder with everything in it, durable."""
    for entry in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if entry.is_dir():
            sync_directory(entry)
        else:
            with entry.open("rb") as file:
                os.fsync(file.fileno())
