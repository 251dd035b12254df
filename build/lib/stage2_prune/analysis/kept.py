"""Which patches a pruner's tokens stand for: what is counted and shown of every method, merging ones too."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stage2_prune.pruning.tokens import Pruned


@dataclass(frozen=True)
class Kept:
    """A batch of images, patch by patch in raster order, on the CPU."""

    tokens: Int[Tensor, " image"]
    """Visual tokens that go on. Fewer patches than that are kept where a token is the CLS row, or two share a patch."""
    patches: Bool[Tensor, "image patch"]
    """What a token stands for: where a method says where its tokens stand (`Pruned.index`) that, otherwise the row with a
    merged token's largest weight, of equals the first. A token that is mostly the CLS row stands for no patch."""
    merged: Bool[Tensor, "image patch"]
    """Those of them whose token is made of other rows too."""
    absorbed: Bool[Tensor, "image patch"]
    """Patches that no token stands for, but that are part of one."""


def kept_of(pruned: Pruned, patches: int) -> Kept:
    """What is kept of images of `patches` patches; `pruned` is as the pruner returned it, its merges still weights."""
    stands = _stands(pruned)
    images, most = stands.shape
    counts = torch.full((images,), most) if pruned.counts is None else pruned.counts.cpu()
    there = torch.arange(most) < counts[:, None]
    if pruned.merge is None:
        kept = _marked(stands, there, patches)
        return Kept(counts, kept, torch.zeros_like(kept), torch.zeros_like(kept))
    made_of = (pruned.merge.weights.cpu() != 0) & there[..., None]
    part = made_of.any(1)[:, :patches]
    kept = _marked(stands, there & made_of.any(2), patches)
    merged = _marked(stands, there & (made_of.sum(2) > 1), patches)
    return Kept(counts, kept, merged, part & ~kept)


def _stands(pruned: Pruned) -> Int[Tensor, "image token"]:
    """The row that each token stands for; behind the patches it is the CLS row."""
    if pruned.index is not None:
        return pruned.index.cpu()
    assert pruned.merge is not None, "a pruner gives an index or a merge"
    return pruned.merge.weights.cpu().argmax(2)


def _marked(
    stands: Int[Tensor, "image token"], chosen: Bool[Tensor, "image token"], patches: int
) -> Bool[Tensor, "image patch"]:
    """Patches for which one of the chosen tokens stands."""
    rows = torch.zeros(len(stands), max(patches + 1, 1), dtype=torch.int64)
    return rows.scatter_add_(1, stands, chosen.long())[:, :patches] > 0
