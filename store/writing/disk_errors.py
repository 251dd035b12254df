"""Errors of a disk that a writer cannot write to, said in one sentence that a user can act on."""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from store.errors import NoSpace

NOT_WRITABLE = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES}
"""System errors of a disk that is full or read-only."""


@contextmanager
def as_no_space(path: Path, needed: int) -> Generator[None, None, None]:
    """Turn errors of a full or read-only disk into NoSpace (exit 7), which says what is needed and what is free.

    Args:
        path: Folder of the store that is written to.
        needed: Bytes of the whole store.

    """
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        raise NoSpace(
            f"cannot write to {path} ({error.strerror}): the whole store needs {needed:,} bytes, {free:,} are free; "
            "make room or make it writable, then run the same command to go on"
        ) from None
