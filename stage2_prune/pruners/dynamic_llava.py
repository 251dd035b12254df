"""A predictor after an early layer decides which visual tokens stay: it reads each token and what all of them have in common.

Dynamic-LLaVA (Huang et al., ICLR 2025), reimplemented from the description. Published: after layer 2 of 32, a predictor of width
512 with two transformer blocks of 8 heads and a local and a global half, Gumbel decisions at temperatures 1.0 to 0.1, the ratio
loss 100 (keep - mean)^2, a fifth of the tokens kept; learning rate 2e-4, batches of 64, one epoch. What differs: the language
model is frozen (published: trained too, at 5e-6); output text is not made sparse; a budget chooses the number; a patch that is
dropped in training weighs 1e-4 in softmax, and masked attention has no added epsilon.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import PositiveInt
from torch import nn

from configs.experiment import Match
from configs.published_layers import language_layer
from stage2_prune.modules.inside import LocalGlobal
from stage2_prune.pruners._gumbel_inside import GumbelInside
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Schedule, fit, staged

PUBLISHED_SHARE = 0.2
"""Share of the visual tokens that stay."""


@dataclass(frozen=True)
class DynamicLlava(GumbelInside):
    """Keeps the visual tokens with the highest logits of the predictor before `layer`; a budget chooses how many."""

    layer: PositiveInt = 2
    """Layer before which tokens are dropped, of 32."""
    width: PositiveInt = 512
    """Width of the predictor, a multiple of `heads` and of 4."""
    heads: PositiveInt = 8
    """Attention heads of its blocks."""
    blocks: PositiveInt = 2
    """Transformer blocks of the predictor."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return the schedule of all tokens, then one number."""
        return fit(keep, patches, depth, lambda share: self._member(patches, depth, share), match, [PUBLISHED_SHARE])

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """Return the published share."""
        return {"20%": self._member(patches, depth, PUBLISHED_SHARE)}

    def _member(self, patches: int, depth: int, share: float) -> Schedule:
        return staged(patches, depth, self.scored_layers(depth), [patches * share])

    def scored_layers(self, depth: int) -> Sequence[int]:
        """Return `layer`."""
        return (language_layer(self.layer, depth),)

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build the predictor."""
        return LocalGlobal(spec.embed, self.width, self.heads, self.blocks)
