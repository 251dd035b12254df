"""A greedy determinantal point process, by which CDPruner selects: each step takes the patch that adds most volume."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def most_volume(kernel: Float[Tensor, "image patch patch"], keep: int) -> Int[Tensor, "image {keep}"]:
    """Return patches in the order in which the greedy takes them, all images at once; sums do not depend on the batch.

    Where no patch can add any volume, the lower indices come next.
    """
    patches = kernel.shape[1]
    residual = kernel.diagonal(dim1=1, dim2=2).clone()
    # Beside the kernel stand the parts of each patch's volume that the kept patches explain, one column for each.
    columns = torch.cat([kernel, kernel.new_zeros(*residual.shape, keep)], dim=2)
    columns.diagonal(dim1=1, dim2=2).fill_(torch.nan)  # nothing is left of a patch that is kept
    nothing = kernel.new_zeros(1)
    kept = torch.empty(len(kernel), keep, dtype=torch.long, device=kernel.device)
    volume = kernel.new_empty(len(kernel), keep)
    for step, end in enumerate(range(patches, patches + keep)):
        patch, most = kept[:, step, None], volume[:, step, None]
        torch.max(residual, dim=1, keepdim=True, out=(most, patch))
        row = columns[..., :end].gather(1, patch[..., None].expand(-1, -1, end))
        explained = (columns[..., patches:end] * row[..., patches:]).sum(dim=-1)
        part = columns[..., end]
        torch.div(row[:, 0, :patches] - explained, most.sqrt(), out=part)
        residual = torch.fmax(residual - part.square(), nothing)  # addcmul would round once, not twice
    return _lowest_once_empty(kept, volume, patches)


def _lowest_once_empty(
    kept: Int[Tensor, "image kept"], volume: Float[Tensor, "image kept"], patches: int
) -> Int[Tensor, "image kept"]:
    """Replace the patches that were kept without any volume by the lowest indices that are left."""
    images, keep = kept.shape
    place = torch.arange(patches + keep, device=kept.device).expand(images, -1)
    turn = torch.where(volume > 0, place[:, :keep], patches + keep)
    return place[:, keep:].scatter_reduce(1, kept, turn, "amin").argsort(dim=1)[:, :keep]
