"""Writing files that are either whole or absent, even after a power cut."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`, replacing what is there: write it aside, fsync, rename, fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(_write_aside(path, content))
    try:
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def publish_once(path: Path, content: bytes | str) -> bool:
    """Create `path` with `content` unless `path` exists already: the first writer wins.

    Returns:
        True if this call created the file.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _write_aside(path, content)
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        Path(aside).unlink()
    sync_directory(path.parent)
    return True


def sync_directory(folder: Path) -> None:
    """Make renames and links inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_aside(path: Path, content: bytes | str) -> str:
    """Write and fsync `content` to a new hidden file in the folder of `path`; return the new file's path."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o644)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return aside
