"""Files that are either whole or absent, even after a power cut."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
"""Ends the name of a file or a folder that is still being written."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` by one that holds `content`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(_encoded(content))


def publish_once(path: Path, content: bytes | str) -> bool:
    """Create a file that holds `content` unless `path` exists.

    Returns:
        True if this call created the file. Of several processes that publish to one path, the first wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _beside(path) as (file, aside):
        file.write(_encoded(content))
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    sync_directory(path.parent)
    return True


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """Lend a file to write to. When the block ends, move the file to `path`; if the block raises, remove the file.

    The content is on the disk before the file gets its name, and the name is on the disk when this returns.
    """
    with _beside(path) as (file, aside):
        yield file
    try:
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def durable(file: BinaryIO, path: Path) -> Generator[BinaryIO, None, None]:
    """Close `file` when the block ends, with all its content on the disk; if the block raises, remove it from `path`."""
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_directory(folder: Path) -> None:
    """Make renames and links inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _beside(path: Path) -> Generator[tuple[BinaryIO, Path], None, None]:
    """Lend a hidden file beside `path`, with its own path; see `durable`."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    with durable(os.fdopen(descriptor, "wb"), Path(aside)) as file:
        os.fchmod(descriptor, 0o644)
        yield file, Path(aside)


def _encoded(content: bytes | str) -> bytes:
    return content.encode() if isinstance(content, str) else content
