"""Patches on an even grid: the baseline that knows nothing of the image but where its patches are."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from stage2_prune.pruner import Pruner
from stage2_prune.tokens import VisualTokens


@dataclass(frozen=True)
class UniformGrid(Pruner):
    """Exactly `keep` patches for every budget, as square a spread as the grid allows.

    The image is cut into `lines` horizontal bands of equal height, lines = round(sqrt(keep * rows / columns))
    as far as that many patches fit; band i gets floor((i+1) keep / lines) - floor(i keep / lines) patches, so
    that bands differ by at most one. Within a band they stand at the centres of equal intervals of its middle
    row.
    """

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """The same `keep` patches for every image, ascending."""
        index = torch.tensor(_spread(keep, *tokens.grid), device=tokens.device)
        return index.expand(len(tokens.image_ids), -1)


def _spread(keep: int, rows: int, columns: int) -> list[int]:
    fewest, most = -(-keep // columns), min(rows, keep)
    lines = min(max(round((keep * rows / columns) ** 0.5), fewest), most)
    chosen: list[int] = []
    for line in range(lines):
        row = _centre(line, lines, rows)
        count = (line + 1) * keep // lines - line * keep // lines
        chosen += [row * columns + _centre(place, count, columns) for place in range(count)]
    return chosen


def _centre(place: int, count: int, length: int) -> int:
    """The middle cell of interval `place` of `count` equal ones; distinct if count <= length."""
    return (2 * place + 1) * length // (2 * count)
