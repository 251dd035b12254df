"""Where a patch stands, as numbers that a network can read."""

import torch
from jaxtyping import Float
from torch import Tensor

LONGEST = 10_000.0
"""Wavelengths grow from 2 pi patches to this many times as much."""


def sine_positions(grid: tuple[int, int], width: int) -> Float[Tensor, "patch {width}"]:
    """Compute sines and cosines of each patch's row and column, at wavelengths that grow geometrically."""
    waves = -(-width // 4)
    rates = LONGEST ** -(torch.arange(waves) / waves)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in grid), indexing="ij")
    angles = torch.cat([place.flatten()[:, None] * rates for place in (rows, columns)], dim=1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
