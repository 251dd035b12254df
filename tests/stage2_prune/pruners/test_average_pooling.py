"""Average pooling against the usual pools and against what a partition is."""

import pytest
import torch
import torch.nn.functional as F

from stage2_prune.pruners.average_pooling import AveragePooling
from stage2_prune.pruners.uniform_grid import UniformGrid
from tests.stage2_prune.tokens import visual_tokens


@pytest.mark.parametrize(("keep", "side"), [(144, 2), (64, 3), (36, 4), (16, 6), (576, 1), (1, 24)])
def test_at_whole_fractions_it_is_the_usual_pool(keep, side):
    tokens = visual_tokens((24, 24), images=1)
    merge = AveragePooling().prune(tokens, keep).merge
    assert merge.space == "projected"
    image = tokens.arrays["projected"][0].T.reshape(1, -1, 24, 24)
    pooled = F.avg_pool2d(image, side)[0].flatten(1).T
    torch.testing.assert_close(merge.weights[0] @ tokens.arrays["projected"][0], pooled)


def test_seven_tokens_of_three_by_five_patches_by_hand():
    # round(sqrt(7 * 3 / 5)) = 2 lines of 3 and 4 cells; the middle of row 1 lies on the second one. Columns 0-4 in 3 cells:
    # 0 0 1 2 2 (their middles at 0.3, 0.9, 1.5, 2.1, 2.7), in 4: 0 1 2 2 3 (0.4, 1.2, 2.0, 2.8, 3.6).
    cells = [[0, 0, 1, 2, 2], [3, 4, 5, 5, 6], [3, 4, 5, 5, 6]]
    weights = AveragePooling().prune(visual_tokens((3, 5), images=1), 7).merge.weights[0]
    cell = torch.tensor(cells).flatten()
    assert torch.equal(weights, torch.stack([(cell == one) / (cell == one).sum() for one in range(7)]))


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7), (9, 2), (11, 13)])
def test_at_every_budget_rectangles_share_the_image_out_and_hold_the_patch_of_the_uniform_grid(grid):
    tokens = visual_tokens(grid, images=1)
    for keep in range(1, tokens.patches + 1):
        pruned = AveragePooling().prune(tokens, keep)
        member = pruned.merge.weights[0] > 0
        assert (member.sum(0) == 1).all() and member.any(1).all()
        for one in member.view(keep, *grid):
            assert one.any(1).sum() * one.any(0).sum() == one.sum(), "no rectangle"
        assert torch.equal(pruned.index, UniformGrid().select(tokens, keep))
        assert member.gather(1, pruned.index.T).all()
        torch.testing.assert_close(pruned.merge.weights[0].sum(-1), torch.ones(keep))
