"""Salient patches that repeat no other, from each of the image's principal components.

PruneSID (Fang et al., "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic
Importance-Diversity", ICLR 2026, arXiv 2603.09480); official code ZhengyaoFang/PruneSID,
prunesid/prunesid_llava/clip_encoder.py at 390d760, reimplemented from the formula. Published: `raw`, CLS attention summed over
heads, compact positions. Patches are in the order of groups; in each, survivors of the suppression come before the rest, and
both are by falling attention.

Quirks: the official budget counts the CLS row, which goes to the language model too. Here only patches go: `keep` of them are
those of the official budget keep + 1. Its principal components come from a randomised decomposition without a seed; here it is
drawn for each image. Groups with equally many survivors are filled up in the order of an unstable sort; here the first comes
next. At keep = patches the official code does not return; here everything is kept in raster order.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.draw import image_seed
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.primitives.suppression import survivors
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruners._components import heaviest_component
from stage2_prune.pruners._group_quotas import best_of_groups, group_quotas
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import VisualTokens

TOKENS_PER_GROUP = 4
"""Tokens of the budget for which there is one group."""
TOKENS_PER_MEAN_SIMILARITY = 32
"""Budget at which patches repeat each other from the mean similarity on; at twice the budget from twice that similarity on."""


@dataclass(frozen=True)
class PruneSid(Pruner):
    """Makes a group for every four tokens of the budget, by principal component; each gives its most attended patches.

    Inside a group a more attended patch suppresses those like it; survivors come first, and decide the group's share.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"
    randomised: ClassVar[bool] = True

    seed: NonNegativeInt = 0
    """Seed of the randomised decomposition; an evaluation averages over this seed and those that follow it."""
    quirks: Literal["official", "fixed"] = "official"
    """`official`: a randomised decomposition; `fixed`: the exact one, which uses no seed."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image, group by group."""
        if keep == tokens.patches:
            return torch.arange(keep, device=tokens.device).expand(len(tokens.image_ids), -1)
        raw = tokens.arrays["raw"].float().cpu()  # the same draw on every device
        saliency = tokens.arrays["cls_attention"].sum(dim=1).cpu()
        images = zip(raw, cosine_similarity(raw), saliency, tokens.image_ids, strict=True)
        return torch.stack([self._choose(*image, keep) for image in images]).to(tokens.device)

    def _choose(
        self,
        raw: Float[Tensor, "patch hidden"],
        similarity: Float[Tensor, "patch patch"],
        saliency: Float[Tensor, " patch"],
        image_id: str,
        keep: int,
    ) -> Int[Tensor, "{keep}"]:
        budget = keep + 1  # the official budget counts the CLS row
        drawn = None if self.quirks == "fixed" else image_seed(self.seed, image_id)
        component = heaviest_component(raw, min(max(1, budget // TOKENS_PER_GROUP), *raw.shape), drawn)
        ranked = ranking(saliency)
        threshold = budget / TOKENS_PER_MEAN_SIMILARITY * similarity.triu(1).sum() / math.comb(len(raw), 2)
        repeats = (similarity > threshold) & (component[:, None] == component)
        survives = survivors(repeats[ranked][:, ranked])
        ranked = torch.cat([ranked[survives], ranked[~survives]])
        of_ranked = component[ranked]
        members, surviving = component.bincount(), of_ranked[: survives.sum()].bincount()
        quotas = group_quotas(keep, budget, members, surviving)
        return best_of_groups(ranked, of_ranked, members, quotas)
