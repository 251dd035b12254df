"""What a writer says about a disk that is full or may not be written to."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from store.files.disk import existing_folder, explaining_full_disks


@contextmanager
def naming_free_bytes(path: Path, needed: int) -> Generator[None, None, None]:
    """Turn errors of a full or read-only disk into NoSpace (exit 7), which says what is needed and what is free.

    Args:
        path: Folder of the store that is written to.
        needed: Bytes of the whole store.
    """

    def explain(reason: str) -> str:
        return (
            f"cannot write to {path} ({reason}): the whole store needs {needed:,} bytes, "
            f"{shutil.disk_usage(existing_folder(path)).free:,} are free; "
            "make room or make it writable, then run the same command to go on"
        )

    with explaining_full_disks(explain):
        yield
