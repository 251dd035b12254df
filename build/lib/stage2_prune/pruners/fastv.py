"""Visual tokens that the last token of the prompt attends to most after the first layers of the language model.

FastV (Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024), pkunlp-icler/FastV at d165972;
reimplemented from the formula. Reads the attention of the layer before the drop, averaged over heads; published at
layer 2 (also 3) with half or a quarter of the tokens kept, at their original positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveInt

from configs.experiment import Match
from configs.published_layers import language_layers
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule, fit, staged

PUBLISHED_SHARES = {"75%": 0.25, "50%": 0.5}
"""Share of the tokens kept, by the share that the paper calls dropped."""


@dataclass(frozen=True)
class FastV(InLLMPruner):
    """Top-k of the attention that visual tokens receive in the layer before the drop, once, at an early layer.

    Quirks: the released code ranks by the query of the last token (`official`), the text of the paper by the average
    over all queries that can see a token (`paper`): here those behind it, each visual token by its own number of them.
    """

    layer: PositiveInt = 2
    """Layers that see every token, of 32."""
    quirks: Literal["official", "paper"] = "official"

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """One count from `layer` on."""
        places = list(PUBLISHED_SHARES.values())
        return fit(keep, patches, depth, lambda share: self._member(patches, depth, share), match, places)

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """Half and three quarters of the tokens dropped, at `layer`."""
        return {name: self._member(patches, depth, share) for name, share in PUBLISHED_SHARES.items()}

    def _member(self, patches: int, depth: int, share: float) -> Schedule:
        return staged(patches, depth, language_layers([self.layer], depth), [share * patches])

    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` most attended tokens."""
        if self.quirks == "official":
            return highest(site.attention(site.last).mean(0)[0, site.image], keep)
        rows = torch.arange(site.start + 1, len(site.hidden), device=site.hidden.device)
        received = site.attention(rows).mean(0)[:, site.image]
        token = torch.arange(site.start, site.start + site.visual, device=rows.device)
        behind = rows[:, None] > token
        return highest((received * behind).sum(0) / behind.sum(0), keep)
