"""Bring rows of a store to the device: a few host buffers take turns, and a GPU is copied to while it computes."""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from store.layout.schema import ArraySpec
from store.layout.tensors import from_storage, to_storage, torch_dtype
from store.reading.reader import FeatureStore

THREADS = 8
"""Threads that read rows for a GPU."""


@dataclass
class Buffer:
    """Room on the host for the rows of one batch, pinned for a GPU."""

    arrays: dict[str, NDArray[Any]]
    """By name, in storage dtype."""
    copied: torch.Event | None = None
    """Set when the last batch has left this room; None where nothing is copied out of it."""


@dataclass(frozen=True)
class Moved:
    """The rows of one batch on their way to the device."""

    arrays: dict[str, Tensor]
    copied: torch.Event | None


class Transfer:
    """Reads rows into buffers and sends them to a device; `read` may run in another thread than `received`."""

    def __init__(self, store: FeatureStore, device: torch.device) -> None:
        self._store, self._device = store, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._gathering = ThreadPoolExecutor(THREADS, "gather") if device.type == "cuda" else None

    def buffer(self, names: Sequence[str], images: int) -> Buffer:
        """Make room for `images` rows of some arrays."""
        specs = [self._store.arrays[name] for name in names]
        return Buffer({spec.name: to_storage(self._room(spec, images)) for spec in specs})

    def read(self, rows: Sequence[int], buffer: Buffer) -> Moved:
        """Gather rows into a buffer, and begin to copy them to a GPU; on a CPU the tensors lie in the buffer."""
        if buffer.copied is not None:
            buffer.copied.synchronize()
        gathered = {
            name: from_storage(self._gather(name, rows, room[: len(rows)]), self._store.arrays[name].dtype)
            for name, room in buffer.arrays.items()
        }
        if self._stream is None:
            return Moved(gathered, None)
        with torch.cuda.stream(self._stream):
            arrays = {name: array.to(self._device, non_blocking=True) for name, array in gathered.items()}
        buffer.copied = self._stream.record_event()
        return Moved(arrays, buffer.copied)

    def received(self, moved: Moved) -> Mapping[str, Tensor]:
        """Let the device's further work wait for a batch, and return its arrays."""
        if moved.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(moved.copied)
            for array in moved.arrays.values():
                array.record_stream(stream)
        return moved.arrays

    def _gather(self, name: str, rows: Sequence[int], room: NDArray[Any]) -> NDArray[Any]:
        """Read rows into the room, for a GPU with several threads: one thread copies more slowly than the bus does."""
        if self._gathering is None:
            return self._store.gather(name, rows, out=room)
        size = math.ceil(len(rows) / THREADS)
        starts = range(0, len(rows), size)
        parts = [(rows[start : start + size], room[start : start + size]) for start in starts]
        list(self._gathering.map(lambda part: self._store.gather(name, part[0], out=part[1]), parts))
        return room

    def _room(self, spec: ArraySpec, images: int) -> Tensor:
        pinned = self._stream is not None
        return torch.empty((images, *spec.shape), dtype=torch_dtype(spec.dtype), pin_memory=pinned)
