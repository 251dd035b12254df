"""Patches that a pointer network picks one after another, until it stops or the budget is spent.

StepPrune (arXiv 2606.16067), from the description: a pointer network with a STOP token, trained with variance-preserving noise.
It was published without code; its published widths and its way of training the choices are not known here.

Learnt: a transformer block of width 256 on raw features, a patch's own logit, its match with the mean of the patches chosen so
far, and the logit of STOP, which sees that mean too. So each choice depends on the choices before it, unlike a top-k.

What differs here: `policy` judges a choice by the lowest logit on the path up to it, which orders patches as they were chosen; a
soft top-k of that gives the weights; the language model reads sqrt(a) x + sqrt(1 - a) noise. By default there is no STOP. With
`count: threshold` logits count from STOP's, weights are sigmoids, and 100 x (share to keep - mean weight)^2 is learnt too. STOP
is shifted for each budget to what validation needs. Train that at one budget (`train.min_keep` equal to `train.max_keep`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.pointer import STEP, Pointer, path_logits, pointed
from stage2_prune.primitives.ranked import drawn_order
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.primitives.vp_noise import vp_noise
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.scored import ThresholdPruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class StepPrune(ThresholdPruner):
    """Keeps the patches that a pointer network picks first; in training, what a patch lacks of its weight is noise."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw"})
    losses: ClassVar[tuple[str, ...]] = ("ratio",)

    width: PositiveInt = 256
    """Width of the block."""
    heads: PositiveInt = 8
    """Attention heads of the block."""
    ratio_weight: NonNegativeFloat = 100.0
    """Where STOP decides, the weight of the squared difference between the share of patches to keep and the mean weight."""

    def network(self, spec: ModuleSpec) -> nn.Module:
        """Build the pointer network, with STOP where it decides."""
        return Pointer(spec.shapes["raw"][-1], self.width, self.heads, stops=self.adaptive)

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Return the lowest logit on the path up to each patch's choice, so that earlier choices score higher."""
        own, stop, matches = self._logits(tokens)
        order = self._path(tokens, own, matches, tokens.patches)
        falling = path_logits(own, stop, matches, order).cummin(1).values
        falling = falling - STEP * torch.arange(tokens.patches, device=own.device)
        return torch.zeros_like(own).scatter(1, order, falling)

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return the first `keep` choices, which have the highest scores of `policy`."""
        own, _, matches = self._logits(tokens)
        return self._path(tokens, own, matches, keep)

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return the weights at the end of a training."""
        return self._weights(self.policy(tokens), keep, self.last_temperature)

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Show every patch with as much noise as its weight lacks."""
        weights = self._weights(self.policy(tokens), practice.keep, self.temperature(practice.progress))
        ratio = self.ratio_weight * (practice.keep / tokens.patches - weights.mean(1)).square()
        return Shown(visual=vp_noise(practice.projected, weights), losses={"ratio": ratio})

    def _logits(self, tokens: VisualTokens) -> tuple[Tensor, Tensor, Float[Tensor, "image patch patch"]]:
        own, stop, matches = image_by_image(self.module, tokens.arrays["raw"]).split([1, 1, tokens.patches], dim=2)
        return own[..., 0], stop[..., 0], matches

    def _path(self, tokens: VisualTokens, own: Tensor, matches: Tensor, keep: int) -> Int[Tensor, "image {keep}"]:
        drawn = drawn_order(tokens.image_ids, tokens.patches, self.tie_seed).to(own.device)
        return pointed(own, matches, drawn, keep)

    def _weights(self, scores: Tensor, keep: int, temperature: float) -> Float[Tensor, "image patch"]:
        free = self.adaptive and keep < scores.shape[1]
        return (scores / temperature).sigmoid() if free else soft_top_k(scores, keep, temperature)
