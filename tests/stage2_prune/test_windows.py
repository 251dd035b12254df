"""Windows of the patch grid."""

import pytest
import torch

from stage2_prune.primitives.windows import bands, per_line, rank_in_window, windows


@pytest.mark.parametrize("length", range(1, 15))
def test_bands_are_in_order_none_is_empty_and_their_lengths_differ_by_at_most_one(length):
    for count in range(1, length + 1):
        band = bands(length, count)
        sizes = torch.bincount(band, minlength=count)
        assert (band.diff() >= 0).all() and len(sizes) == count
        assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1


def test_windows_tile_the_grid_by_hand():
    assert windows((4, 6), 2, 3).view(4, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    # The middles of five columns lie at 0.4, 1.2, 2.0, 2.8 and 3.6 windows; one row has one window only.
    assert windows((1, 5), 4, 4).tolist() == [0, 1, 2, 2, 3]


def test_ranks_are_counted_within_each_window_and_equals_go_by_index():
    scores = torch.tensor([5.0, 1, 3, 3, 9, 3])
    window = torch.tensor([0, 1, 0, 1, 0, 1])
    assert rank_in_window(scores, window).tolist() == [1, 2, 2, 0, 0, 1]


def test_lines_hold_the_budget_between_them():
    assert per_line(64, 24, 24) == [8] * 8
    assert per_line(7, 3, 5) == [3, 4]
    assert per_line(15, 3, 5) == [5, 5, 5]
    assert all(sum(per_line(keep, 3, 5)) == keep for keep in range(1, 16))
