"""No visual token at all in the second half of the language model.

VTW (Lin et al., "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal", AAAI 2025), as in the port
ModelTC/LightCompress at 9701d03, reimplemented from the description. The method reads nothing. It was published at layer 16 of
32.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import PositiveInt

from configs.experiment import Match
from configs.published_layers import language_layer
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site
from stage2_prune.pruning.pruner import BudgetKind
from stage2_prune.pruning.schedule import Schedule, Stage


@dataclass(frozen=True)
class Vtw(InLLMPruner):
    """Keeps all visual tokens up to a layer and none from there on.

    The method takes no budget: its mean over layers follows from `layer` alone, in steps of patches / layers.
    """

    budget: ClassVar[BudgetKind] = "fixed"

    layer: PositiveInt = 16
    """Layers that see every token, of 32."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return a schedule of everything, then nothing; `keep` has no effect."""
        stages = (Stage(language_layer(self.layer, depth), 0),) if depth > 1 else ()
        return Schedule(depth, patches, stages)

    def drop(self, site: Site, keep: int) -> Drop:
        """Keep nothing."""
        return Drop(torch.empty(0, dtype=torch.long, device=site.hidden.device))
