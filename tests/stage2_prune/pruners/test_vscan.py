"""VScan against a case by hand and against its maths, written out."""

import numpy as np
import pytest
import torch

from stage2_prune.pruners.vscan import VScan
from stage2_prune.pruning.tokens import VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens


def test_two_windows_by_hand():
    # One row of patches in windows 0-3 and 4-7, one local patch each: 1 and 4. The best of the others in the deep layer is 0,
    # though 4 is the best of all. By their features 5 goes to 0; 2, 3 and 7 go to 1; 6 goes to 4.
    shallow = torch.tensor([0.1, 0.2, 0.1, 0.0, 0.3, 0.0, 0.1, 0.2])
    deep = torch.tensor([[0.2, 0.0, 0.1, 0.1, 0.4, 0.0, 0.1, 0.1], [0.2, 0.1, 0.0, 0.1, 0.4, 0.1, 0.1, 0.0]])
    features = torch.tensor([[1.0, 0], [2, 0.1], [0, 3], [0.1, 1], [-1, 0], [3, -0.2], [-2, 0.1], [0, 1]])
    layers = torch.stack([torch.zeros(8), shallow, torch.zeros(8)])
    arrays = {"cls_attention_layers": layers[None], "cls_attention": deep[None], "projected": features[None]}
    pruner = VScan(local=0.7, local_layer=-2, windows_per_side=2)
    pruned = pruner.prune(VisualTokens(("0",), (1, 8), arrays), 3)
    assert pruned.index.tolist() == [[0, 1, 4]] and pruned.merge.space == "projected"
    half, part = 1 / 2, 1 / 4
    expected = [[half, 0, 0, 0, 0, half, 0, 0], [0, part, part, part, 0, 0, 0, part], [0, 0, 0, 0, half, 0, half, 0]]
    assert torch.equal(pruned.merge.weights[0], torch.tensor(expected))


def expected(tokens, layer: int, keep: int, side: int) -> tuple[list[int], np.ndarray]:
    """For grids that are cut into 4 x 4 windows of `side` x `side` patches."""
    found = naive.arrays(tokens)
    patches, columns = tokens.patches, tokens.grid[1]
    quota = int(keep * 0.5) // 16
    kept = []
    for top in range(0, tokens.grid[0], side):
        for left in range(0, columns, side):
            inside = [(top + row) * columns + left + column for row in range(side) for column in range(side)]
            kept += naive.best({patch: found["cls_attention_layers"][layer][patch] for patch in inside}, quota)
    deep = {patch: sum(head[patch] for head in found["cls_attention"]) for patch in range(patches)}
    kept += naive.best({patch: deep[patch] for patch in deep if patch not in kept}, keep - len(kept))
    kept = sorted(kept)
    sums, count = naive.picks(kept, patches), dict.fromkeys(kept, 1)
    for patch in range(patches):
        if patch not in count:
            target = naive.nearest(found["projected"], patch, kept)
            sums[kept.index(target), patch] = 1
            count[target] += 1
    return kept, sums / np.array([count[patch] for patch in kept])[:, None]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("keep", [1, 31, 57, 64, 100, 128, 192, 576])
def test_it_is_its_maths_at_every_budget(keep, seed):
    tokens = visual_tokens((24, 24), images=1, seed=seed, layers=24)
    pruned = VScan().prune(tokens, keep)
    index, weights = expected(tokens, 5, keep, side=6)
    assert pruned.index.tolist() == [index]
    np.testing.assert_allclose(pruned.merge.weights[0].double(), weights, rtol=1e-6, atol=0)


def test_the_local_layer_is_as_deep_in_a_tower_of_another_depth():
    tokens = visual_tokens((8, 8), images=1, layers=12)
    pruned = VScan().prune(tokens, 40)
    index, weights = expected(tokens, 2, 40, side=2)
    assert pruned.index.tolist() == [index]
    np.testing.assert_allclose(pruned.merge.weights[0].double(), weights, rtol=1e-6, atol=0)
    assert VScan().tower_layers(12) == {"local_layer": 2}
    assert VScan().tower_layers(24) == {"local_layer": 5}


def test_what_the_windows_leave_of_their_half_goes_to_the_whole_image():
    tokens = visual_tokens((24, 24), images=1, layers=24)
    published, more = (set(VScan().prune(tokens, keep).index[0].tolist()) for keep in (96, 100))
    assert len(more) == 100 and published < more
