"""What a device reaches at best: floating-point operations of a large matrix product, and bytes read and written by a copy."""

from dataclasses import dataclass

import torch

from tests.benchmarks.gpu.clock import Clock


@dataclass(frozen=True)
class Peaks:
    """Measured rates."""

    flops: float
    """Floating-point operations per second."""
    bytes: float
    """Bytes per second to and from the device's own memory."""


def measure_peaks(clock: Clock, dtype: torch.dtype) -> Peaks:
    """Measure both rates in the dtype of the model."""
    size, elements = (8192, 2**30) if clock.device.type == "cuda" else (512, 2**22)
    left, right = (torch.randn(size, size, device=clock.device, dtype=dtype) for _ in range(2))
    product = clock.median(lambda: torch.mm(left, right), rounds=5)
    source = torch.empty(elements, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    copied = clock.median(lambda: target.copy_(source), rounds=5)
    return Peaks(2 * size**3 / product, 2 * elements / copied)
