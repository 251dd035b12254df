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
from stage2_prune.pruners._volume import most_volume
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
