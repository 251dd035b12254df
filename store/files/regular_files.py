"""A folder as a Zarr store that never waits: where a pipe or a device lies in place of a file, zarr's own would for ever."""

import errno
import os
import stat

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore


class RegularFiles(LocalStore):
    """zarr's LocalStore, for which what is no regular file cannot be read (OSError)."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes under a key, or None, as LocalStore reads them."""
        self._require_file(key)
        return await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes under a key, or None, as LocalStore reads them."""
        self._require_file(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _require_file(self, key: str) -> None:
        place = self.root / key
        try:
            mode = place.stat().st_mode
        except OSError:  # LocalStore says what is wrong, or that nothing is there
            return
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is no file", os.fspath(place))
