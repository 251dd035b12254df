"""Temporary folders and half-written files whose names say which process made them.

So the next process removes what a killed process left behind, and leaves alone what living processes still use.
"""

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
    """Make a new name that begins with `prefix` and says which process of which machine made it."""
    return f"{prefix}.{_host()}-{os.getpid()}-{own_start()}.{uuid4().hex}"


def scratch_folder(prefix: str, parent: Path | None = None) -> Path:
    """Make a temporary folder for this process alone.

    Folders that dead processes of this machine left there under the same prefix are removed first.

    Args:
        prefix: begins the folder's name.
        parent: the folder to make it in; the system's folder for temporary files by default.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_of_the_dead(parent, prefix)
    folder = parent / owned_name(prefix)
    folder.mkdir(mode=0o700, parents=True)
    return folder


@contextmanager
def scratch(prefix: str, parent: Path | None = None) -> Generator[Path, None, None]:
    """Lend a `scratch_folder`, and remove it when the block ends."""
    folder = scratch_folder(prefix, parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_of_the_dead(parent: Path, prefix: str, suffix: str = "") -> None:
    """Remove what dead processes of this machine left in `parent` under an `owned_name` of `prefix`, followed by `suffix`."""
    with suppress(OSError):  # a folder that may not be listed or written to is left as it is
        for path in parent.glob(f"{glob_escaped(prefix)}.*{suffix}"):
            owner = _OWNER.search(path.name.removesuffix(suffix))
            if owner is None or owner["host"] != _host() or not has_ended(int(owner["pid"]), int(owner["start"])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def glob_escaped(text: str) -> str:
    """Escape the characters that `glob` would read as a pattern."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"
