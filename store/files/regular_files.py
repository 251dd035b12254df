"""A folder as a Zarr store that never waits; zarr's own LocalStore waits for ever on a pipe or a device."""

import errno
import os
import stat

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore


class RegularFiles(LocalStore):
    """zarr's LocalStore, but reading anything except a regular file raises OSError."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the bytes under a key as LocalStore does; None if nothing lies there."""
        self._require_file(key)
        return await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the bytes under a key as LocalStore does; None if nothing lies there."""
        self._require_file(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _require_file(self, key: str) -> None:
        path = self.root / key
        try:
            mode = path.stat().st_mode
        except OSError:  # LocalStore raises its own error, or returns None where nothing lies
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is no file", os.fspath(path))
