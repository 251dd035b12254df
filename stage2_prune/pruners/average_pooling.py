"""Means over rectangles of the image: the baseline that merges without looking at the image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.primitives.windows import bands, per_line
from stage2_prune.pruners.uniform_grid import UniformGrid
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Merge, Pruned, VisualTokens


@dataclass(frozen=True)
class AveragePooling(Pruner):
    """Cuts the image into `keep` rectangles, as equal and as square as the grid allows, and averages the projected patches of
    each.

    At a quarter or a ninth of the patches these are the usual 2 x 2 and 3 x 3 pools. A token stands where `uniform_grid` has
    its patch, in the middle of the rectangle; pooling projectors number their tokens consecutively, so positions are compact.
    """

    positions: ClassVar[Positions] = "compact"

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """Return the same weights for every image."""
        member = torch.nn.functional.one_hot(_rectangles(keep, *tokens.grid), keep).T.float()
        weights = (member / member.sum(1, keepdim=True)).to(tokens.device)
        weights = weights.expand(len(tokens.image_ids), -1, -1)
        return Pruned(UniformGrid().select(tokens, keep), Merge(weights, "projected"))


def _rectangles(keep: int, rows: int, columns: int) -> Tensor:
    """Return the rectangle in which each patch lies."""
    counts = per_line(keep, rows, columns)
    line_of_row = bands(rows, len(counts))
    first = [sum(counts[:line]) for line in range(len(counts))]
    return torch.cat([first[line] + bands(columns, counts[line]) for line in line_of_row.tolist()])
