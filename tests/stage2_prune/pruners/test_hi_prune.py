"""HiPrune against cases by hand and against its maths, written out."""

import pytest
import torch

from stage2_prune.pruners.hi_prune import HiPrune
from stage2_prune.pruning.tokens import VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens


def five_of_sixteen(anchor: int, quirks: str) -> list[int]:
    """A group around `anchor` on a grid of 4 x 4; the deep layer prefers patches in the order 6, 5, 4, …, 0, 15, 14, …, 7."""
    anchors, deep = torch.zeros(16), torch.tensor([(patch - 7) % 16 for patch in range(16)]).float()
    anchors[anchor] = 1
    arrays = {"received_attention": torch.stack([anchors, deep])[None]}
    pruner = HiPrune(alpha=1.0, object_layer=-2, deep_layer=-1, quirks=quirks)
    return pruner.select(VisualTokens(("0",), (4, 4), arrays), 5)[0].tolist()


def test_inside_the_image_a_group_is_a_plus_by_hand():
    assert five_of_sixteen(9, "official") == five_of_sixteen(9, "fixed") == [5, 8, 9, 10, 13]


def test_at_the_edges_the_released_code_wraps_and_clamps_by_hand():
    assert five_of_sixteen(3, "official") == [0, 2, 3, 4, 7]  # right of 3 is 4, above it is -1 clamped to 0
    assert five_of_sixteen(3, "fixed") == [2, 3, 5, 6, 7]  # 2, 3, 7 and the best two of the deep layer
    assert five_of_sixteen(13, "official") == [9, 12, 13, 14, 15]  # below 13 is 17 clamped to 15
    assert five_of_sixteen(13, "fixed") == [6, 9, 12, 13, 14]
    assert five_of_sixteen(0, "official") == [0, 1, 4, 5, 6]  # left of 0 and above it is 0 itself
    assert five_of_sixteen(0, "fixed") == [0, 1, 4, 5, 6]


def expected(tokens, keep: int, quirks: str, layers: tuple[int, int]) -> list[int]:
    received = naive.arrays(tokens)["received_attention"]
    rows, columns = tokens.grid
    middle, deep = ({patch: received[layer][patch] for patch in range(tokens.patches)} for layer in layers)
    kept = set()
    for anchor in naive.best(middle, round(keep * 0.1 / 5)):
        row, column = divmod(anchor, columns)
        for down, across in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
            if quirks == "official":
                kept.add(min(max(anchor + down * columns + across, 0), tokens.patches - 1))
            elif 0 <= row + down < rows and 0 <= column + across < columns:
                kept.add((row + down) * columns + column + across)
    kept |= set(naive.best({patch: deep[patch] for patch in deep if patch not in kept}, keep - len(kept)))
    return sorted(kept)


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_its_maths_at_every_budget(quirks, seed):
    tokens = visual_tokens((24, 24), images=1, seed=seed, layers=24)
    for keep in (1, 2, 24, 25, 64, 100, 128, 192, 333, 575, 576):
        assert HiPrune(quirks=quirks).select(tokens, keep)[0].tolist() == expected(tokens, keep, quirks, (8, 22))


def test_on_another_grid_and_depth_layers_are_as_deep_and_rows_as_wide_as_they_are():
    tokens = visual_tokens((5, 9), images=1, layers=12)
    assert HiPrune().tower_layers(12) == {"object_layer": 3, "deep_layer": 10}
    assert HiPrune().tower_layers(24) == {"object_layer": 8, "deep_layer": 22}
    for keep in range(1, 46):
        assert HiPrune().select(tokens, keep)[0].tolist() == expected(tokens, keep, "official", (3, 10))


def test_groups_never_take_more_than_the_budget():
    tokens = visual_tokens((5, 5), images=1)
    for keep in range(1, 26):
        assert HiPrune(alpha=1.0).select(tokens, keep).shape == (1, keep)
