"""VScan, its part before the language model: patches seen from afar and from near, all others averaged into them.

Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", arXiv 2505.22654;
Tencent/SelfEvolvingAgent (VScan/) at a82450e. Reimplemented from its maths.

Reads the CLS row's attention of a shallow layer and of the layer that makes `raw`, and `projected`. Published: half of the
budget local, layer 5 of 24 (from 0) in 4 x 4 windows, the other half global; the second stage, which halves the tokens inside the
language model at layer 16 of 32, is another method. Kept patches are in raster order; compact positions.

Where half of the budget is no multiple of the number of windows the released code keeps fewer tokens than asked for (98 of 100):
here the global half gets what is left over. It also zeroes the cached attention in place; both are the same where it keeps its
budget, so there is no quirk to choose.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from configs.published_layers import tower_layer
from stage2_prune.primitives.nearest import assigned, complement, one_hot
from stage2_prune.primitives.top_k import top_k
from stage2_prune.primitives.windows import rank_in_window, windows
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class VScan(Pruner):
    """The best patches of every window in a shallow layer and the best of the image in a deep one, in projected space."""

    needs: ClassVar[frozenset[str]] = frozenset({"projected", "cls_attention", "cls_attention_layers"})
    positions: ClassVar[Positions] = "compact"

    local: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the kept tokens that are chosen window by window."""
    local_layer: int = 5
    """Tower layer of the local choice, from 0 in a tower of 24."""
    windows_per_side: PositiveInt = 4
    """Into how many windows each side of the image is cut."""

    def tower_layers(self, layers: int) -> dict[str, int]:
        """The local layer; the global one is that which makes `raw`."""
        return {"local_layer": tower_layer(self.local_layer, layers)}

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """The kept patches, and weights that average each with those most like it."""
        every = tokens.arrays["cls_attention_layers"]
        shallow = every[:, self.tower_layers(every.shape[1])["local_layer"]]
        window = windows(tokens.grid, self.windows_per_side, self.windows_per_side).to(tokens.device)
        index, weights = [], []
        for near, far, features in zip(
            shallow, tokens.arrays["cls_attention"], tokens.arrays["projected"], strict=True
        ):
            kept = self._chosen(near, far.mean(0), window, keep)
            members = one_hot(kept, len(window)) + assigned(features, kept, complement(kept, len(window)))
            index.append(kept)
            weights.append(members / members.sum(1, keepdim=True))
        return Pruned(torch.stack(index), Merge(torch.stack(weights), "projected"))

    def _chosen(
        self, near: Float[Tensor, " patch"], far: Float[Tensor, " patch"], window: Int[Tensor, " patch"], keep: int
    ) -> Int[Tensor, " {keep}"]:
        quota = int(keep * self.local) // (int(window[-1]) + 1)
        local = rank_in_window(near, window) < quota
        return top_k(far.masked_fill(local, torch.inf)[None], keep)[0]
