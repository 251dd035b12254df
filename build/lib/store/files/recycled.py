"""Reuse the memory of large arrays: the page faults of fresh memory cost as much time as filling it."""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1 << 20
"""Bytes of the smallest array whose memory is reused here; the allocator itself reuses smaller pieces."""
_IDLE = 4
"""Most pieces of memory that are kept for a later array of their size."""


class Recycled:
    """A source of empty arrays. When the last view of an array is gone, the next array of the same size gets its memory."""

    def __init__(self) -> None:
        self._idle: deque[NDArray[np.uint8]] = deque(maxlen=_IDLE)

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Make an array with undefined values, as `np.empty` does."""
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALLEST:
            return np.empty(shape, dtype)
        memory = self._take(size)
        # Every view, and every view of a view, refers to this array and not to `memory`: a memoryview lies between the two.
        array = np.frombuffer(memory.data, dtype)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array.reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """Take idle memory of this size, or allocate it.

        Uses only atomic operations and no lock, because arrays are given back in any thread at any moment.
        """
        for _ in range(len(self._idle)):
            try:
                memory = self._idle.popleft()
            except IndexError:  # other threads took the rest
                break
            if memory.nbytes == size:
                return memory
            self._idle.append(memory)
        return np.empty(size, np.uint8)
