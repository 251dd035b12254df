"""Patches that differ from each other, weighed by how much the question asks for each.

CDPruner (Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS
2025, arXiv 2506.10967); official code Theia-4869/CDPruner, llava/model/llava_arch.py at 9541616, reimplemented from the
formula. The method reads `projected` (for cosines), `clip_patches` and the question's pooled CLIP text; a long question counts
with the mean over its segments. It was published without parameters, in raster order, with compact positions.

Quirks: relevance is the *negated* cosine of patch and text, as CLIP's last layer but one has it. The official code scales it to
[0, 1] over the batch, so that an image's patches depend on its batch (`official`); `fixed` keeps for every image the patches
that the image keeps alone. Where no patch can add any volume, or all are equally relevant, the official code divides by zero
and returns patches twice: here the lower indices come next, and every relevance is 1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Beside, VisualTokens


@dataclass(frozen=True)
class CdPruner(Pruner):
    """A greedy determinantal point process over relevance x cosine x relevance: each step takes the patch that adds most
    volume.

    A patch's residual is the square of what it adds. It is updated from kept patch to kept patch (Chen et al., 2018).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projected", "clip_patches"})
    nested: ClassVar[bool] = True
    reads: ClassVar[frozenset[Beside]] = frozenset({"clip_text"})
    positions: ClassVar[Positions] = "compact"

    quirks: Literal["official", "fixed"] = "fixed"
    """`official`: relevance is scaled over the batch, so that results depend on it; `fixed`: over each image. See above."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image in the order in which they are found; of equal patches the lower index."""
        assert tokens.clip_text is not None
        pairs = zip(tokens.arrays["clip_patches"].float(), tokens.clip_text.pooled, strict=True)
        relevance = self._scaled(torch.stack([_relevance(*pair) for pair in pairs]))
        kernel = relevance[:, :, None] * cosine_similarity(tokens.arrays["projected"]) * relevance[:, None, :]
        return most_volume(kernel, keep)

    def _scaled(self, relevance: Float[Tensor, "image patch"]) -> Float[Tensor, "image patch"]:
        over = (0, 1) if self.quirks == "official" else (1,)
        least = relevance.amin(over, keepdim=True)
        span = relevance.amax(over, keepdim=True) - least
        return torch.where(span > 0, (relevance - least + 1e-6) / span, 1.0)


def _relevance(
    patches: Float[Tensor, "patch clip"], segments: Float[Tensor, "segment clip"]
) -> Float[Tensor, " patch"]:
    return -(F.normalize(patches, dim=-1) @ F.normalize(segments, dim=-1).T).mean(dim=-1)


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
