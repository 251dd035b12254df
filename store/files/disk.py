"""Whatever lies on a disk, it can be looked at: what cannot be read is said in a sentence and never waited for.

Where a file belongs there may be a folder, a link to itself, a pipe, or a file that this user or the disk does not let be read.
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
"""Where `repair` moves what does not belong where it lies; nothing reads it."""
_CANNOT_WRITE = NO_SPACE_OR_READ_ONLY | {errno.EACCES}
_NUMBERED = re.compile(r"(0|[1-9][0-9]{0,17})\.json")


class Unreadable(IntegrityError):
    """Something lies where a file or a folder belongs, and cannot be read as one."""


def without_waiting(name: str, flags: int) -> int:
    """An opener of regular files: opening a pipe would wait for whoever writes to it, and devices do not end."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", name)
    return descriptor


def content(path: Path) -> bytes:
    """What a file holds; FileNotFoundError if nothing lies there, Unreadable (exit 4) if it is no file or cannot be read."""
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
    """Bytes of a file; None if there is no file, or it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, in order; nothing where there is no folder. Unreadable (exit 4) if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        if folder.is_symlink():
            raise Unreadable(f"{folder} cannot be read (it is a link that leads nowhere)") from None
        return []
    except OSError as error:
        raise Unreadable(f"{folder} cannot be read ({error.strerror})") from None


def numbered(name: str) -> int | None:
    """The number in a name such as `3.json`; None if the name is written in another way.

    >>> [numbered(name) for name in ("3.json", "03.json", "3 (copy).json", "3.json~")]
    [3, None, None, None]
    """
    found = _NUMBERED.fullmatch(name)
    return None if found is None else int(found[1])


def in_the_way(store: Path, path: Path) -> Path | None:
    """What keeps a file from being written to `path` in a store: a folder there, or what is no folder above it.

    A link to a folder that is there counts as that folder: parts of a store may lie on another disk.
    """
    above = [folder for folder in (*reversed(path.parents), path) if folder.is_relative_to(store) and folder != store]
    for folder in above[:-1]:
        if os.path.lexists(folder) and not folder.is_dir():
            return folder
    return path if path.is_dir() and not path.is_symlink() else None


def make_way(store: Path, path: Path) -> None:
    """Move what keeps a file from being written to `path` among the strays."""
    while (odd := in_the_way(store, path)) is not None:
        move_out(store, odd)


def make_lockable(store: Path, lock: Path) -> None:
    """Move what can be no lock among the strays: nobody holds it."""
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        move_out(store, lock)


def move_out(store: Path, path: Path) -> Path:
    """Move something among the strays, under a name of its own; nothing is ever deleted."""
    place = store / STRAYS / f"{path.name}.{uuid4().hex[:8]}"
    place.parent.mkdir(exist_ok=True)
    path.rename(place)
    return place


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
