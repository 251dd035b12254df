"""Look at a disk without ever waiting for it, and turn what cannot be read or written into errors of one sentence.

In the place of a file there may be a folder, a link to itself, a pipe, or a file that this user or the disk cannot read.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from configs.errors import NO_SPACE_OR_READ_ONLY
from store.errors import IntegrityError, NoSpace

STRAYS = "strays"
"""The folder that `repair` moves files to that do not belong where they lie; nothing reads this folder."""
# Missing rights count too: the advice "make room or make it writable" covers them.
_CANNOT_WRITE = NO_SPACE_OR_READ_ONLY | {errno.EACCES}
_NUMBERED = re.compile(r"(0|[1-9][0-9]{0,17})\.json")


class Unreadable(IntegrityError):
    """Something that lies in the place of a file or a folder cannot be read as such."""


def existing_folder(path: Path) -> Path:
    """Return the folder that holds `path`, or the nearest one above that is there already: its disk is the one written to."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def without_waiting(name: str, flags: int) -> int:
    """Open only regular files; pass this as `opener` to `open`.

    Opening a pipe would wait until something writes to it, and reading a device may never end.
    """
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", name)
    return descriptor


def content(path: Path) -> bytes:
    """Read a file.

    Raises:
        FileNotFoundError: nothing lies there.
        Unreadable: what lies there is no file, or cannot be read (exit 4).
    """
    try:
        with open(path, "rb", opener=without_waiting) as file:
            return file.read()
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable(f"{path} cannot be read (it is a link that leads nowhere)") from None
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None


def size_of(path: Path) -> int | None:
    """Return the size of a file in bytes; None if there is no file or its size cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def listed(folder: Path) -> list[Path]:
    """List the paths in a folder, sorted; empty if there is no folder. Raises Unreadable (exit 4) for an unlistable folder."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        if folder.is_symlink():
            raise Unreadable(f"{folder} cannot be read (it is a link that leads nowhere)") from None
        return []
    except OSError as error:
        raise Unreadable(f"{folder} cannot be read ({error.strerror})") from None


def numbered(name: str) -> int | None:
    """Read the number in a name such as `3.json`; None if the name is written in another way.

    >>> [numbered(name) for name in ("3.json", "03.json", "3 (copy).json", "3.json~")]
    [3, None, None, None]
    """
    matched = _NUMBERED.fullmatch(name)
    return None if matched is None else int(matched[1])


def in_the_way(store: Path, path: Path) -> Path | None:
    """Find what keeps a file from being written to `path` in a store; None if nothing does.

    The obstacle is a folder at `path`, or something above `path` that is no folder. A link to an existing folder counts as a
    folder, because parts of a store may lie on another disk.
    """
    above = [folder for folder in (*reversed(path.parents), path) if folder.is_relative_to(store) and folder != store]
    for folder in above[:-1]:
        if os.path.lexists(folder) and not folder.is_dir():
            return folder
    return path if path.is_dir() and not path.is_symlink() else None


def make_way(store: Path, path: Path) -> None:
    """Move whatever keeps a file from being written to `path` to the strays of the store."""
    while (obstacle := in_the_way(store, path)) is not None:
        move_out(store, obstacle)


def make_lockable(store: Path, lock: Path) -> None:
    """Move what lies in the place of a lock file, and is no regular file, to the strays: no process can hold such a lock."""
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        move_out(store, lock)


def move_out(store: Path, path: Path) -> Path:
    """Move a file or folder to the strays of a store, under an unused name, and return its new path. Nothing is deleted."""
    stray = store / STRAYS / f"{path.name}.{uuid4().hex[:8]}"
    stray.parent.mkdir(exist_ok=True)
    path.rename(stray)
    return stray


@contextmanager
def explaining_full_disks(explain: Callable[[str], str]) -> Generator[None, None, None]:
    """Turn the system's errors about a disk that is full or may not be written to into NoSpace (exit 7).

    Args:
        explain: makes the message of NoSpace from what the system says, such as "No space left on device".
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise NoSpace(explain(str(error.strerror))) from None
