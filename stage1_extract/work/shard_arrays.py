"""The arrays of one shard on the host, which are filled while the device goes on computing."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from store.layout.schema import ArraySpec
from store.layout.tensors import from_storage, to_storage, torch_dtype

QUEUED = 2
"""Calls of the tower that a GPU may have before it beside the call that is being queued: more would only hold memory."""


class ShardArrays:
    """Room for every row of a shard.

    On a GPU the room is pinned, and rows are copied into their final place on a stream of their own: the tower goes on meanwhile,
    and no other pass over the values is made. torch gives the room of a shard that was written to a later one.
    """

    def __init__(
        self, specs: Sequence[ArraySpec], images: int, device: torch.device, stream: torch.cuda.Stream | None,
        kept: Mapping[str, NDArray[Any]],
    ) -> None:  # fmt: skip
        """Make room.

        Args:
            specs: The arrays of the store.
            images: Rows of the shard.
            device: Where the tower runs.
            stream: What copies run on; None on a CPU.
            kept: Whole arrays to fill the rest of, where some rows are right already; or none.

        """
        self._stream = stream
        self._tensors = {
            spec.name: from_storage(kept[spec.name], spec.dtype)
            if spec.name in kept
            else torch.empty((images, *spec.shape), dtype=torch_dtype(spec.dtype), pin_memory=device.type == "cuda")
            for spec in specs
        }
        self._copied: deque[torch.cuda.Event] = deque()

    def put(self, arrays: Mapping[str, Tensor], positions: Sequence[int]) -> None:
        """Copy rows that the device makes into their places, ascending; on a GPU wait for no more than earlier copies."""
        if self._stream is None:
            self._copy(arrays, positions)
            return
        made = torch.cuda.current_stream(self._stream.device).record_event()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(made)
            self._copy(arrays, positions)
            for values in arrays.values():
                if values.is_cuda:
                    values.record_stream(self._stream)  # its memory is not used for anything else before it is copied
        # A blocking event lets its waiter sleep; otherwise the waiter would keep a core busy that decoding can use.
        copied = torch.cuda.Event(blocking=True)
        self._stream.record_event(copied)
        self._copied.append(copied)
        if len(self._copied) > QUEUED:
            self._copied.popleft().synchronize()

    def wait(self) -> None:
        """Wait until the device has made and copied all rows that were put."""
        if self._copied:
            self._copied[-1].synchronize()

    def finished(self) -> dict[str, NDArray[Any]]:
        """Wait for the copies, and return every array in storage dtype; rows that nothing was put into hold anything."""
        self.wait()
        return {name: to_storage(tensor) for name, tensor in self._tensors.items()}

    def _copy(self, arrays: Mapping[str, Tensor], positions: Sequence[int]) -> None:
        for first, last, place in _runs(positions):
            for name, values in arrays.items():
                self._tensors[name][place : place + last - first].copy_(values[first:last], non_blocking=True)


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Return a stream for copies beside the tower's work; None on a CPU."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _runs(positions: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield first and last + 1 index of each run of consecutive positions, and the position where it begins."""
    first = 0
    for index in range(1, len(positions) + 1):
        if index == len(positions) or positions[index] != positions[index - 1] + 1:
            yield first, index, positions[first]
            first = index
