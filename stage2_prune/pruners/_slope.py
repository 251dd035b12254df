"""How far projected patches move when their features are moved along a direction, which is what ZOO-Prune measures."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from stage2_prune.pruning.tokens import Project

ROWS = 2**16
"""Rows that are projected at once, at most: 1 GB at a width of 4096 in float32."""


def slopes(
    project: Project, raw: Float[Tensor, "patch hidden"], directions: Float[Tensor, "direction hidden"], step: float
) -> Float[Tensor, "direction patch"]:
    """Return the lengths of projected differences per unit along each direction, with `step` to either side, in float32 or
    better.

    In 16 bits most of a small step would be rounded away: there the derivative, in forward mode, takes its place. All patches
    are moved along as many directions as `ROWS` allows, and are projected in one call.
    """
    along = _differences if raw.dtype.itemsize >= 4 else _derivatives
    parts = directions.split(max(ROWS // (2 * len(raw)), 1))
    return torch.cat([along(project, raw, part, step).unflatten(0, (len(part), -1)) for part in parts])


def _differences(
    project: Project, raw: Float[Tensor, "patch hidden"], directions: Float[Tensor, "direction hidden"], step: float
) -> Float[Tensor, " row"]:
    steps = (step * directions)[:, None]
    ahead, behind = project(torch.stack([raw + steps, raw - steps]).flatten(0, 2)[None])[0].chunk(2)
    return (ahead - behind).norm(dim=-1) / (2 * step)


def _derivatives(
    project: Project, raw: Float[Tensor, "patch hidden"], directions: Float[Tensor, "direction hidden"], _: float
) -> Float[Tensor, " row"]:
    image = raw.expand(len(directions), -1, -1).flatten(0, 1)[None]
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch warns about how it loads this itself
        along = forward_ad.make_dual(image, directions[:, None].expand(-1, len(raw), -1).flatten(0, 1)[None])
        derivative = forward_ad.unpack_dual(project(along)).tangent
        assert derivative is not None, "a projector depends on its rows"
        return derivative[0].float().norm(dim=-1)
