"""Patches on an even grid: the baseline that knows nothing of the image but where its patches are."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.primitives.windows import per_line
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class UniformGrid(Pruner):
    """Exactly `keep` patches for every budget, as square a spread as the grid allows.

    The image is cut into horizontal bands of equal height (stage2_prune/primitives/windows.py, `per_line`). Within a band patches
    stand at the centres of equal intervals of its middle row.
    """

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The same `keep` patches for every image, ascending."""
        index = torch.tensor(_spread(keep, *tokens.grid), device=tokens.device)
        return index.expand(len(tokens.image_ids), -1)


def _spread(keep: int, rows: int, columns: int) -> list[int]:
    counts = per_line(keep, rows, columns)
    chosen: list[int] = []
    for line, count in enumerate(counts):
        row = _centre(line, len(counts), rows)
        chosen += [row * columns + _centre(place, count, columns) for place in range(count)]
    return chosen


def _centre(place: int, count: int, length: int) -> int:
    """The middle cell of interval `place` of `count` equal ones; distinct if count <= length."""
    return (2 * place + 1) * length // (2 * count)
