"""Visual tokens that duplicate the fewest others: those least like a few pivots.

DART (Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP
2025), ZichenWen1/DART; the commit was not readable, the rule is that of its copies and of the ports in LightCompress
and UniPrune; reimplemented from it. Reads cached keys (for pivots) and hidden states (for likeness) of the layer before
the drop; published at layer 2 of 32 with 4 + 4 pivots, original positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Int
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site
from stage2_prune.pruning.schedule import PUBLISHED_PATCHES, Schedule, fit, staged

PUBLISHED_COUNTS = {"64": 60, "128": 124, "192": 188}
"""Visual tokens kept of 576, by the nominal budget."""


@dataclass(frozen=True)
class Dart(InLLMPruner):
    """Pivots by the L1 norm of their keys, in the image and in the text behind it; each adds its least similar patches.

    Every budget is met: what 4 + 8 x n leaves over goes to the first pivots. Quirks: pivots take turns, and the
    released code takes them in the order of a Python set of their positions in the prompt (`official`), which a text
    before the image changes; `fixed` takes the image's and then the text's, each by falling norm.
    """

    layer: PositiveInt = 2
    """Layers that see every token, of 32."""
    image_pivots: PositiveInt = 4
    """Visual tokens that are pivots, and stay."""
    text_pivots: NonNegativeInt = 4
    """Text tokens that are pivots."""
    quirks: Literal["official", "fixed"] = "official"

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """One count from `layer` on."""
        places = [count / PUBLISHED_PATCHES for count in PUBLISHED_COUNTS.values()]
        return fit(keep, patches, depth, lambda share: self._member(patches, depth, share), match, places)

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The published counts at `layer`: on 32 layers their means are 92.25, 152.25 and 212.25 tokens."""
        return {
            name: self._member(patches, depth, count / PUBLISHED_PATCHES) for name, count in PUBLISHED_COUNTS.items()
        }

    def _member(self, patches: int, depth: int, share: float) -> Schedule:
        return staged(patches, depth, language_layers([self.layer], depth), [share * patches])

    def drop(self, site: Site, keep: int) -> Drop:
        """The image's pivots and, in turns, what is least similar to each pivot."""
        size = site.keys.float().abs().sum((0, 2))
        everything = torch.arange(len(size), device=size.device)
        image = _largest(size, everything[site.image], min(self.image_pivots, keep))
        pivots = [*image, *_largest(size, site.text, self.text_pivots)]
        if self.quirks == "official":
            pivots = list(set(pivots).copy())
        states = F.normalize(site.decoder.norm(site.hidden).float(), dim=-1)
        kept, left = set(image), keep - len(image)
        for turn, pivot in enumerate(pivots):
            share = left // len(pivots) + (turn < left % len(pivots))
            candidates = torch.tensor([token for token in everything[site.image].tolist() if token not in kept])
            likeness = (states[candidates.to(size.device)] * states[pivot]).sum(-1).cpu()
            kept |= set(candidates[likeness.sort(stable=True).indices[:share]].tolist())
        return Drop(torch.tensor(sorted(kept), device=size.device) - site.start)


def _largest(size: Tensor, among: Int[Tensor, " token"], count: int) -> list[int]:
    order = size[among].sort(descending=True, stable=True).indices
    return among[order[:count]].tolist()
