"""How far projected patches move when they are shaken along a direction, as ZOO-Prune measures it."""

import warnings

from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from stage2_prune.pruning.tokens import Project


def slope(
    project: Project, raw: Float[Tensor, "patch hidden"], direction: Float[Tensor, " hidden"], step: float
) -> Float[Tensor, " patch"]:
    """Length of the projected difference per unit along `direction`, `step` to either side; float32 or better.

    In 16 bits most of a small step would be rounded away: the derivative takes its place, in forward mode.
    """
    image = raw[None]
    if raw.dtype.itemsize >= 4:
        return (project(image + step * direction) - project(image - step * direction))[0].norm(dim=-1) / (2 * step)
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about how it loads this
        along = forward_ad.make_dual(image, direction.expand_as(image).contiguous())
        derivative = forward_ad.unpack_dual(project(along)).tangent
        assert derivative is not None, "a projector depends on its rows"
        return derivative[0].float().norm(dim=-1)
