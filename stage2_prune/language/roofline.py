"""Predict the time of a prefill from what the device can do: arithmetic, bytes of memory, and the slower of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from stage2_prune.language.prefill import Forward, seconds_of
from stage2_prune.language.price import CONVENTIONS, shape_from

Bound = Literal["launches", "memory", "compute"]
_FAR = 1.5
"""The eager forward is bound by launches if it takes this many times as long as a graph's replay and as the roofline."""
_RUNS = 10
_SIDE = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the matrices that are multiplied to find a peak: large enough to fill the device."""
_COPIED = {"cuda": 2**28, "cpu": 2**25}
"""Bytes that are copied to find a peak: more than the device's caches hold."""


@dataclass(frozen=True)
class Peaks:
    """What a device was measured to do at best."""

    flops_per_second: float
    """Operations of a matrix product, where a multiplication and an addition are two."""
    bytes_per_second: float
    """Bytes that a copy reads and writes."""


@dataclass(frozen=True)
class Roofline:
    """The least seconds that a prefill can take on a device."""

    compute: float
    """Seconds of its arithmetic at the device's peak."""
    memory: float
    """Seconds of reading the weights once and writing the keys and values once, at the device's peak."""

    @property
    def seconds(self) -> float:
        """Return the slower of both: arithmetic and memory can work at the same time."""
        return max(self.compute, self.memory)

    def bound_by(self, eager: float, graph: float | None) -> Bound:
        """Name what an eager forward of `eager` seconds is bound by; `graph` seconds are those of its replay as a graph."""
        if graph is not None and eager > _FAR * max(graph, self.seconds):
            return "launches"
        return "memory" if self.memory > self.compute else "compute"


def device_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure the peaks of a device: a product of large matrices in `dtype`, and a copy from device memory to device memory."""
    side, size = (sizes["cuda" if device.type == "cuda" else "cpu"] for sizes in (_SIDE, _COPIED))
    left, right = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))  # constants multiply faster
    product = torch.empty_like(left)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Peaks(
        2 * side**3 / _fastest(lambda: torch.mm(left, right, out=product), device),
        2 * size / _fastest(lambda: target.copy_(source), device),
    )


def prefill_roofline(language_model: Any, peaks: Peaks, tokens_per_layer: Sequence[int], batch: int = 1) -> Roofline:
    """Predict the prefill of `batch` prompts of which `tokens_per_layer` tokens, visual and text, enter each layer.

    Counted are the products that a FLOP counter finds, with the head at the last token alone; the weights that the forward reads,
    without the table of text embeddings; and the keys and values. Activations are left out: they mostly stay in the caches.
    """
    embeddings = language_model.get_input_embeddings().weight
    head = language_model.get_output_embeddings().weight
    shape = shape_from(language_model.config, embeddings.itemsize)
    flops = batch * (CONVENTIONS["flops_all"].count(shape, tokens_per_layer, 0) + 2 * head.numel())
    weights = sum(parameter.nbytes for parameter in language_model.parameters())
    weights -= 0 if head is embeddings else embeddings.nbytes
    cached = batch * sum(tokens_per_layer) * shape.kv_bytes
    return Roofline(flops / peaks.flops_per_second, (weights + cached) / peaks.bytes_per_second)


def _fastest(forward: Forward, device: torch.device) -> float:
    return min(seconds_of(forward, device, _RUNS))
