"""Patches that cover both the words of the question and the other patches.

MMTok (Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", ICLR 2026, arXiv 2508.18264),
Ironieser/MMTok; its released mmtok/core/semantic_selector.py, as copied by Thames-H/26nips-mmtok at 13f0c9a, reimplemented from
the formula. The method reads the language model's embeddings of the question, `projected` (its likeness to words) and `raw`
(its likeness to other patches). Published: temperatures 0.02 and 0.2, weight 0.5, raster order, compact positions.

Quirks: the release leaves stop words and the answer's format out of the question, and on LLaVA-1.5 patches of pure padding out
of the choice: neither is in the paper, and neither is here. Its gains are summed afresh in float32 at every step; here they are
updated in float64.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruners._coverage import cover
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Beside, VisualTokens


@dataclass(frozen=True)
class MmTok(Pruner):
    """Greedy coverage: each token of the question and each patch is covered as far as the kept patch most like it is.

    Likeness is the softmax, over an image's patches, of cosine / temperature. The greedy maximises the mean cover of the
    question's tokens + `weight` x the mean cover of the patches.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "projected"})
    nested: ClassVar[bool] = True
    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})
    positions: ClassVar[Positions] = "compact"

    text_temperature: PositiveFloat = 0.02
    """Softness of the likeness of words and patches, in units of the cosine."""
    patch_temperature: PositiveFloat = 0.2
    """Softness of the likeness of patches and patches, in units of the cosine."""
    weight: NonNegativeFloat = 0.5
    """Weight of the patches' cover; the weight of the question's cover is 1."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image in the order in which they are found; of equal patches the lower index."""
        assert tokens.question is not None
        pairs = zip(tokens.question.float(), tokens.arrays["projected"].float(), strict=True)
        words = torch.stack([_cosines(*pair) for pair in pairs]) / self.text_temperature
        patches = cosine_similarity(tokens.arrays["raw"]) / self.patch_temperature
        of_words = words.softmax(dim=-1) / words.shape[1]
        of_patches = patches.softmax(dim=-1) * (self.weight / tokens.patches)
        return cover(torch.cat([of_words, of_patches], dim=1), keep)


def _cosines(
    words: Float[Tensor, "token embed"], patches: Float[Tensor, "patch embed"]
) -> Float[Tensor, "token patch"]:
    return F.normalize(words, dim=-1) @ F.normalize(patches, dim=-1).T
