"""Windows of the patch grid: which one each patch lies in, and its rank there."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.top_k import ranking


def bands(length: int, count: int) -> Int[Tensor, " {length}"]:
    """Which of `count` equal intervals the middle of each of `length` cells lies in; none is empty if count <= length."""
    return (2 * torch.arange(length) + 1) * count // (2 * length)


def windows(grid: tuple[int, int], rows: int, columns: int) -> Int[Tensor, " patch"]:
    """Window of each patch, the grid being cut into `rows` x `columns` of them as far as there are patches for that."""
    down, across = bands(grid[0], min(rows, grid[0])), bands(grid[1], min(columns, grid[1]))
    return (down[:, None] * min(columns, grid[1]) + across).flatten()


def rank_in_window(scores: Float[Tensor, " patch"], window: Int[Tensor, " patch"]) -> Int[Tensor, " patch"]:
    """How many patches of its own window come before each: those of higher scores, and of equals the lower indices."""
    order = ranking(scores)
    order = order[window[order].argsort(stable=True)]
    ordered = window[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return rank


def per_line(keep: int, rows: int, columns: int) -> list[int]:
    """How many of `keep` places stand on each of some lines, so that they spread as squarely as the grid allows.

    round(sqrt(keep * rows / columns)) lines as far as that many places fit; line i gets
    floor((i+1) keep / lines) - floor(i keep / lines), so that lines differ by at most one.
    """
    fewest, most = -(-keep // columns), min(rows, keep)
    lines = min(max(round((keep * rows / columns) ** 0.5), fewest), most)
    return [(line + 1) * keep // lines - line * keep // lines for line in range(lines)]
