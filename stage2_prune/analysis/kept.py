"""Find the patches that a pruner's tokens stand for, so that all methods, merging ones too, can be counted and shown."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stage2_prune.pruning.tokens import Pruned


@dataclass(frozen=True)
class KeptPatches:
    """What a pruner keeps of a batch of images: patch by patch in raster order, on the CPU."""

    tokens: Int[Tensor, " image"]
    """Number of visual tokens that are kept. Fewer patches are kept if a token is the CLS row, or if two share a patch."""
    patches: Bool[Tensor, "image patch"]
    """The patches that a token stands for.

    A token stands for the patch at its place (`Pruned.index`) if the method gives places; otherwise for the row that has
    the largest weight in the merged token, of equals the first. A token that is mostly the CLS row stands for no patch.
    """
    merged: Bool[Tensor, "image patch"]
    """The patches among them whose token is made of other rows too."""
    absorbed: Bool[Tensor, "image patch"]
    """Patches that are part of a token but that no token stands for."""


def kept_of(pruned: Pruned, patches: int) -> KeptPatches:
    """Find what is kept of images of `patches` patches.

    `pruned` must be as the pruner returned it, with merges still given as weights.
    """
    rows = _rows(pruned)
    images, most = rows.shape
    counts = torch.full((images,), most) if pruned.counts is None else pruned.counts.cpu()
    is_token = torch.arange(most) < counts[:, None]
    if pruned.merge is None:
        kept = _marked(rows, is_token, patches)
        return KeptPatches(counts, kept, torch.zeros_like(kept), torch.zeros_like(kept))
    made_of = (pruned.merge.weights.cpu() != 0) & is_token[..., None]
    part = made_of.any(1)[:, :patches]
    kept = _marked(rows, is_token & made_of.any(2), patches)
    merged = _marked(rows, is_token & (made_of.sum(2) > 1), patches)
    return KeptPatches(counts, kept, merged, part & ~kept)


def _rows(pruned: Pruned) -> Int[Tensor, "image token"]:
    """Find the row that each token stands for; the row behind the patches is the CLS row."""
    if pruned.index is not None:
        return pruned.index.cpu()
    assert pruned.merge is not None, "a pruner gives an index or a merge"
    return pruned.merge.weights.cpu().argmax(2)


def _marked(
    rows: Int[Tensor, "image token"], chosen: Bool[Tensor, "image token"], patches: int
) -> Bool[Tensor, "image patch"]:
    """Mark the patches that one of the chosen tokens stands for."""
    counts = torch.zeros(len(rows), max(patches + 1, 1), dtype=torch.int64)
    return counts.scatter_add_(1, rows, chosen.long())[:, :patches] > 0
