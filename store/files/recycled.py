"""Large arrays in memory that earlier ones gave back: the page faults of fresh memory cost as much as filling it."""

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1 << 20
"""Bytes; below, the allocator recycles by itself."""
_IDLE = 4
"""Pieces of memory that wait for an array of their size."""


class Recycled:
    """Arrays that nobody else holds; when the last view of one is gone, its memory serves the next one of its size."""

    def __init__(self) -> None:
        self._idle: deque[NDArray[np.uint8]] = deque(maxlen=_IDLE)

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Like `np.empty`."""
        size = math.prod(shape) * dtype.itemsize
        if size < _SMALLEST:
            return np.empty(shape, dtype)
        memory = self._take(size)
        # Every view, and every view of one, refers to this array and not to the memory: a memoryview is between the two.
        array = np.frombuffer(memory.data, dtype)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return array.reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        """Only what is atomic, and no lock: arrays are given back in any thread, at any moment."""
        for _ in range(len(self._idle)):
            try:
                memory = self._idle.popleft()
            except IndexError:  # other threads took the rest
                break
            if memory.nbytes == size:
                return memory
            self._idle.append(memory)
        return np.empty(size, np.uint8)
