"""Patches that a small network, trained through the frozen language model, scores highest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.pruner import ModuleSpec, TrainedPruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class LearnedScorer(TrainedPruner):
    """Keeps the patches with the highest learned scores; a score reads the raw feature, the image's mean and the CLS attention.

    The method does not look at the question. It is trained with a soft top-k (stage2_prune/primitives/soft_topk.py) at random
    budgets, so one network serves every budget.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention"})
    nested: ClassVar[bool] = True

    hidden: PositiveInt = 64
    """Width of the hidden layer."""
    temperature: PositiveFloat = 0.1
    """Softness of the top-k in training, in units of the score: towards 0 a patch is either kept or not."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the scoring network for features of any width and any number of heads."""
        return PatchScorer(spec.shapes["raw"][-1], spec.shapes["cls_attention"][0], self.hidden)

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the `keep` highest scores of each image, highest first; of equal scores the lower index."""
        return ranking(self.scores(tokens))[:, :keep]

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return the weights of the soft top-k."""
        return soft_top_k(self.scores(tokens), keep, self.temperature)

    def scores(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Compute a float32 score per patch, image by image, as the last bits of a GEMM may depend on its shape."""
        images = zip(tokens.arrays["raw"], tokens.arrays["cls_attention"], strict=True)
        return torch.stack([self.module(raw.float(), attention) for raw, attention in images])


class PatchScorer(nn.Module):
    """A network of two layers on each patch: it reads its own feature, the image's mean as context, and its log CLS attention."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, hidden)
        self.context = nn.Linear(width, hidden, bias=False)
        self.attention = nn.Linear(heads, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)  # a top-k does not see a bias

    def forward(
        self, raw: Float[Tensor, "patch hidden"], attention: Float[Tensor, "head patch"]
    ) -> Float[Tensor, " patch"]:
        """Compute the scores of one image."""
        feature = F.layer_norm(raw, raw.shape[-1:])
        mean = feature.mean(0, keepdim=True)
        # Relative to uniform attention: 0 for an average patch, whatever the number of patches.
        relative = (attention.T * len(raw)).clamp_min(torch.finfo(attention.dtype).tiny).log()
        hidden = self.own(feature) + self.context(mean) + self.attention(relative)
        return self.score(F.gelu(hidden))[:, 0]
