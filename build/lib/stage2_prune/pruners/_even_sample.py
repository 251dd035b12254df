"""Patches at equal steps of the raster, as PruMerge+ samples an image."""

import torch
from jaxtyping import Int
from torch import Tensor

SAMPLE_DENSITY = 3
"""How many times as dense as the outliers the sample of PruMerge+ is."""


def at_equal_steps(patches: int, count: int) -> Int[Tensor, " {count}"]:
    """`count` patches in the middles of as many equal steps."""
    step = patches // max(count, 1)
    return torch.arange(count) * step + step // 2


def denser_than(outliers: int, patches: int) -> Int[Tensor, " sample"]:
    """`SAMPLE_DENSITY` times as many patches as there are outliers; the first alone where there are none.

    Outliers are a quarter of all patches at the most, so the step is never 0; the last patch is never taken.
    """
    step = int(1 / (outliers / patches)) // SAMPLE_DENSITY if outliers else patches
    return torch.arange(0, max(patches - 1, 1), step)
