"""Nüwa, its first stage: patches are kept evenly over the image, and the less attended of them gather similar patches nearby.

"Nüwa: Mending the Spatial Integrity Torn by VLM Token Pruning", ICLR 2026; Man-PaperRejected/Nuwa at 2a4427f, reimplemented
from its maths.

The method reads the CLS row's attention of the layer that makes `raw`, `raw`, and the mean of late hidden states, whose cosines
say which patches are alike. Published: 2 x 2 cells, each of which offers its best 1, 2 or 3 patches for 112, 224 or 336 kept
patches (the fewest that suffice, here at every budget), distance 280, quantile 0.55, raster order, original positions. The
second stage, inside the language model, cuts these to 64, 128 or 192 tokens on average over layers and is another method: here
`keep` is what this stage keeps.

Quirk: weights are normalised over the row and only then the patch's own weight is set to 1, so that they sum to almost 2;
`fixed` leaves them normalised.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.nearest import one_hot
from stage2_prune.primitives.top_k import top_k
from stage2_prune.primitives.windows import rank_in_window, windows
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class Nuwa(Pruner):
    """Keeps the highest CLS attention among the best of every cell, and aggregates in raw space for all but the most attended."""

    needs: ClassVar[frozenset[str]] = frozenset({"raw", "cls_attention", "hidden_mean"})
    positions: ClassVar[Positions] = "original"

    cell: PositiveInt = 2
    """Side of the cells, in patches."""
    distance: PositiveFloat = 280.0
    """Square of the distance from which on nothing is gathered, in patches."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.55
    """Quantile of the kept patches' attention from which on a patch gathers nothing."""
    quirks: Literal["official", "fixed"] = "official"
    """What the weights sum to: see above."""

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return the kept patches, and the weights of what each is made of."""
        rows, columns = (-(-side // self.cell) for side in tokens.grid)
        window = windows(tokens.grid, rows, columns).to(tokens.device)
        near = self._nearness(tokens.grid).to(tokens.device)
        score = tokens.arrays["cls_attention"].sum(dim=1)
        rank = rank_in_window(score, window)
        offered = rank <= rank.sort(dim=1).values[:, keep - 1, None]
        index = top_k(score.masked_fill(~offered, -torch.inf), keep)
        return Pruned(index, Merge(self._gathered(index, score, tokens.arrays["hidden_mean"], near), "raw"))

    def _gathered(
        self,
        kept: Int[Tensor, "image kept"],
        score: Float[Tensor, "image patch"],
        hidden: Float[Tensor, "image patch hidden"],
        near: Float[Tensor, "patch patch"],
    ) -> Float[Tensor, "image kept patch"]:
        own = one_hot(kept, score.shape[1])
        # Image by image: the last bits of a product may depend on its shape and on where its rows lie in memory.
        units = (F.normalize(image.float(), dim=-1) for image in hidden)
        cosine = torch.stack([unit[index] @ unit.T for unit, index in zip(units, kept, strict=True)])
        alike = torch.where(own > 0, own, cosine.relu() * near[kept])
        alike = alike / alike.sum(dim=-1, keepdim=True)
        if self.quirks == "official":
            alike = torch.where(own > 0, own, alike)
        of_kept = score.gather(1, kept)
        attended = of_kept >= of_kept.quantile(self.quantile, dim=1, keepdim=True)
        return torch.where(attended[..., None], own, alike)

    def _nearness(self, grid: tuple[int, int]) -> Float[Tensor, "patch patch"]:
        """Return a weight that is 1 at the patch itself and falls to 0 at the distance."""
        row, column = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).float().T
        squared = (row[:, None] - row).square() + (column[:, None] - column).square()
        return (1 - (squared / self.distance).sqrt()).clamp_min(0)
