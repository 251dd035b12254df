"""Patches that lie as far from each other as possible, whatever they show.

DivPrune (Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv
2503.02175); official code vbdi/divprune at 799e2d9, reimplemented from the formula. Published: cosine distance of `projected`,
compact positions, no parameters. The official code keeps round(ratio * patches): here a budget states the number itself.

Quirks: the official code sorts the kept patches into raster order; the runs of the paper left them in the order in which they
were found, which changes what a causal language model makes of them. Where all that is left equals patches that are kept, the
official code keeps some of these twice; here the lower of the remaining indices come next.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.pruners._farthest import farthest_first
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Greedy max-min diversity: each step takes the patch whose nearest kept patch is farthest away.

    The first patch is the one that is farthest from its own nearest neighbour.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})
    nested: ClassVar[bool] = True
    positions: ClassVar[Positions] = "compact"

    quirks: Literal["official", "paper"] = "official"
    """`official`: raster order; `paper`: in the order in which patches were found."""

    def ranking(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return `keep` patches of each image in the order in which they are found; of equal patches the lower index."""
        distance = 1 - cosine_similarity(tokens.arrays["projected"])
        own_then_nearest = min(2, tokens.patches)  # a patch's smallest distance is that to itself
        return farthest_first(distance, distance.kthvalue(own_then_nearest, dim=1).values, keep)

    def arrange(self, ranking: Int[Tensor, "image kept"]) -> Int[Tensor, "image kept"]:
        """Return the patches in the order that `quirks` names."""
        return ranking if self.quirks == "paper" else super().arrange(ranking)
