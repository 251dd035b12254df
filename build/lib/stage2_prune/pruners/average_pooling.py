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
    """The image cut into `keep` rectangles as equal and as square as the grid allows, the projected patches of each averaged.

    At a quarter or a ninth of the patches these are the usual 2 x 2 and 3 x 3 pools. A token stands where
    `uniform_grid` has its patch, in the middle of the rectangle; pooling projectors number theirs consecutively.
    """

    positions: ClassVar[Positions] = "compact"

    def prune(self, tokens: VisualTokens, keep: int) -> Pruned:
        """The same weights for every image."""
        member = torch.nn.functional.one_hot(_rectangles(keep, *tokens.grid), keep).T.float()
        weights = (member / member.sum(1, keepdim=True)).to(tokens.device)
        every = weights.expand(len(tokens.image_ids), -1, -1)
        return Pruned(UniformGrid().select(tokens, keep), Merge(every, "projected"))


def _rectangles(keep: int, rows: int, columns: int) -> Tensor:
    """Which rectangle each patch lies in."""
    counts = per_line(keep, rows, columns)
    line = bands(rows, len(counts))
    first = [sum(counts[:place]) for place in range(len(counts))]
    return torch.cat([first[at] + bands(columns, counts[at]) for at in line.tolist()])
