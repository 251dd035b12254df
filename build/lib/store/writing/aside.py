"""Files and folders that are made beside their place and moved there when they are whole."""

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
    """A path to write a file or a folder to; it becomes `target`, durably, when the block ends without an error.

    A killed process leaves at most `<target>.….partial`, which the next one removes. Raises TargetExists (exit 2);
    `overwrite` replaces a file.
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
    """Make a file, or a folder with all that is in it, durable."""
    for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if file.is_dir():
            sync_directory(file)
        else:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
