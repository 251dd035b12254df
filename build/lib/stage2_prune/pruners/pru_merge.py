"""LLaVA-PruMerge: the patches that CLS attends to most, each with what is like it added.

Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388;
42Shawn/LLaVA-PruMerge at 097c041. Reimplemented from its maths.

Reads the CLS row's attention and the keys of the tower's last layer, both over its full width, and `raw`. Published: as many
patches as are outliers of the attention, 32 nearest by the cosine of keys, one token more for all patches that are not kept.
PruMerge+ (`plus`) adds a sample at equal steps, three times as dense as the outliers; at a fixed count, as it is trained, half
of the patches are a sample. The official sample at a fixed count has steps of int(1 / share), so that it has as many patches as
the top-k at 43 of the 288 possible counts only (72 + 72 is one) and the official code raises at all others; here the sample
is half of the budget at every budget, at equal steps that fit, and is the official one where there is one.

`keep` counts the last token. Order: by falling attention, then by step, then the last token, which stands nowhere in the
image, so positions are compact; there is none where nothing is left for it.

Quirks: weights are not normalised (1 for the patch itself, their attention for the others), and `plus` at a fixed count may take
a patch twice and loses as many of the first patches that are not kept. `fixed` takes means weighted by attention, distinct
patches, in raster order. The official code finds outliers over the batch, so that an image depends on it; here never.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruners._even_sample import at_equal_steps, denser_than
from stage2_prune.pruners._neighbours import Neighbours
from stage2_prune.pruners._outliers import outliers, ragged
from stage2_prune.pruning.pruner import Pruner, TokenOrder
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class PruMerge(Pruner):
    """Top-k of CLS attention in the tower's last layer; nearest neighbours are added in raw space, the rest is one token."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "last_layer_attention", "last_layer_keys"})
    positions: ClassVar[Positions] = "compact"
    order: ClassVar[TokenOrder] = "own"

    plus: bool = False
    """PruMerge+: an even sample of the image is among the patches."""
    neighbours: PositiveInt = 32
    """Patches that are added to each kept one."""
    quirks: Literal["official", "fixed"] = "official"
    """How weights are normalised and patches repeated: see above."""
    count: Literal["budget", "outliers"] = "budget"
    """How many patches: as the budget says, or as many as the attention has outliers, as published."""

    @property
    def adaptive(self) -> bool:
        """Where outliers decide."""
        return self.count == "outliers"

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Weights over the patches."""
        kept = self._outliers if self.adaptive else partial(self._budgeted, count=keep - 1)
        merged = Neighbours(self.neighbours, normalised=self.quirks == "fixed").weights
        arrays = zip(tokens.arrays["last_layer_attention"], tokens.arrays["last_layer_keys"], strict=True)
        weights = [merged(attention, keys, kept(attention)) for attention, keys in arrays]
        return ragged(weights) if self.adaptive else Pruned(merge=Merge(torch.stack(weights), "raw"))

    def _budgeted(self, attention: Float[Tensor, " patch"], count: int) -> Int[Tensor, " {count}"]:
        patches, sampled = len(attention), count // 2 if self.plus else 0
        sample = at_equal_steps(patches, sampled).to(attention.device)
        if self.quirks == "official":
            return torch.cat([ranking(attention)[: count - sampled], sample])
        return ranking(attention.index_fill(0, sample, torch.inf))[:count].sort().values

    def _outliers(self, attention: Float[Tensor, " patch"]) -> Int[Tensor, " kept"]:
        patches, most = len(attention), outliers(attention)
        kept = ranking(attention)[:most]
        if self.plus:
            sample = denser_than(most, patches).to(kept.device)
            kept = torch.cat([kept, sample[~torch.isin(sample, kept)]])
        return kept if self.quirks == "official" else kept.sort().values
