"""Windows of the patch grid: the window of each patch, and its rank among the patches there."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.primitives.top_k import ranking


def bands(length: int, count: int) -> Int[Tensor, " {length}"]:
    """Return, for each of `length` cells, which of `count` equal intervals its middle lies in.

    No interval is empty if count <= length.
    """
    return (2 * torch.arange(length) + 1) * count // (2 * length)


def windows(grid: tuple[int, int], rows: int, columns: int) -> Int[Tensor, " patch"]:
    """Return the window of each patch, with the grid cut into `rows` x `columns` windows.

    A grid with fewer patches on a side than that is cut into as many windows there as it has patches.
    """
    down, across = bands(grid[0], min(rows, grid[0])), bands(grid[1], min(columns, grid[1]))
    return (down[:, None] * min(columns, grid[1]) + across).flatten()


def rank_in_window(scores: Float[Tensor, "*image patch"], window: Int[Tensor, " patch"]) -> Int[Tensor, "*image patch"]:
    """Count for each patch the patches of its own window that come before it.

    These are the patches with higher scores, and of equal scores the lower indices.
    """
    ranked = ranking(scores)
    ranked = ranked.gather(-1, window[ranked].argsort(dim=-1, stable=True))  # window by window, each by falling score
    sorted_windows = window.sort().values
    place = torch.arange(len(window), device=window.device) - torch.searchsorted(sorted_windows, sorted_windows)
    return torch.empty_like(ranked).scatter_(-1, ranked, place.expand_as(ranked))


def per_line(keep: int, rows: int, columns: int) -> list[int]:
    """Spread `keep` points over lines as squarely as the grid allows; return how many points stand on each line.

    There are round(sqrt(keep * rows / columns)) lines, as far as that many points fit; line i gets floor((i+1) keep / lines) -
    floor(i keep / lines), so that lines differ by at most one.
    """
    fewest, most = -(-keep // columns), min(rows, keep)
    lines = min(max(round((keep * rows / columns) ** 0.5), fewest), most)
    return [(line + 1) * keep // lines - line * keep // lines for line in range(lines)]
