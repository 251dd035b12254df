"""Patches that transformer blocks score highest, trained with noise in place of what is dropped.

DiffPrune / AutoSelect, arXiv 2603.07135 and 2605.28051, reimplemented from the description; no code was read.

Learnt: two transformer blocks (width 1024, which is that of the raw features; 16 heads) and a linear score, and a denoiser that
exists in training alone. A soft top-k gives each patch a weight a, and the language model reads sqrt(a) x + sqrt(1 - a) noise,
cleaned by the denoiser: attention that is diagonal, so that each token attends to itself and no patch can borrow what another one
lost. Published, with everything else frozen: AdamW at 2e-4 with a cosine, batches of 32, 2,000 steps, temperature 2.0 to 0.1, the
language model's loss alone, 10 % of ImageNet-1K's captions (`train.learning_rate: 2e-4`, `train.batch_size: 32`).

What differs here: a token that attends to itself alone is a network per token, written as one hidden layer that sees the patch
and its weight; its correction is weighed by 1 - a, so that a whole patch stays as it is. The noise is scaled by the standard
deviation of the image's projected features. Budgets are drawn at random in each step; raw features are normed first; and it is
trained on questions, not on captions.
"""

from dataclasses import dataclass

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from stage2_prune.modules.blocks import image_by_image
from stage2_prune.modules.denoiser import DiagonalDenoiser
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.primitives.vp_noise import vp_noise
from stage2_prune.pruners.scale_gate import ScaleGate
from stage2_prune.pruning.practice import Practice, Shown
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class DiffPrune(ScaleGate):
    """Keeps the highest scores of transformer blocks on raw features; in training, what a patch lacks of its weight is noise."""

    denoiser: PositiveInt | None = None
    """Width of the denoiser's hidden layer; None takes the width of the projected features."""

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the blocks with their score, and the denoiser."""
        denoiser = DiagonalDenoiser(spec.embed, self.denoiser or spec.embed)
        return nn.ModuleDict({"scorer": super().build(spec), "denoiser": denoiser})

    def policy(self, tokens: VisualTokens) -> Float[Tensor, "image patch"]:
        """Score the patches of each image, without the denoiser."""
        return image_by_image(self.module.get_submodule("scorer"), tokens.arrays["raw"])

    def practise(self, tokens: VisualTokens, practice: Practice) -> Shown:
        """Show every patch with as much noise as its weight lacks, cleaned."""
        weights = soft_top_k(self.policy(tokens), practice.keep, self.temperature(practice.progress))
        denoise = self.module.get_submodule("denoiser")
        return Shown(visual=denoise(vp_noise(practice.projected, weights), weights))
