"""Temporary folders and half-written files that say whose they are, so that a killed process's are removed by the next."""

import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from store.log.processes import has_ended, own_start

_OWNER = re.compile(r"\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)\.[0-9a-f]{32}$")


def owned_name(prefix: str) -> str:
    """Make a new name that begins with `prefix` and says which process of which machine it belongs to."""
    return f"{prefix}.{_host()}-{os.getpid()}-{own_start()}.{uuid4().hex}"


def scratch_folder(prefix: str, parent: Path | None = None) -> Path:
    """Make a folder that only this process knows, below `parent` or where the system keeps what is temporary.

    What processes of this machine left there under the same prefix, and are no more, is removed.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_of_the_dead(parent, prefix)
    folder = parent / owned_name(prefix)
    folder.mkdir(mode=0o700, parents=True)
    return folder


@contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Generator[Path, None, None]:
    """Lend a `scratch_folder`, which is removed at the end."""
    folder = scratch_folder(prefix, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_of_the_dead(parent: Path, prefix: str, suffix: str = "") -> None:
    """Remove files and folders whose names, but for `suffix`, are of `owned_name` and whose process is provably dead."""
    with suppress(OSError):  # a folder that may not be listed or written to is left as it is
        for found in parent.glob(f"{glob_escaped(prefix)}.*{suffix}"):
            owner = _OWNER.search(found.name.removesuffix(suffix))
            if owner is None or owner["host"] != _host() or not has_ended(int(owner["pid"]), int(owner["start"])):
                continue
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def glob_escaped(text: str) -> str:
    """Quote what `glob` would take for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"
