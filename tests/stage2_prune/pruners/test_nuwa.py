"""Nüwa's first stage against a case by hand and against its maths, written out."""

import math

import numpy as np
import pytest
import torch

from stage2_prune.pruners.nuwa import Nuwa
from stage2_prune.pruning.tokens import VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens


def test_one_row_by_hand():
    # Cells of two patches offer 1 and 2, though 0 is the second best of all; 1 has the higher score and stays as it is. 2 gathers
    # within sqrt(4) patches: 1 at half weight with cosine 0.6, 3 at half weight with cosine 1, 0 not at all (distance 2).
    hidden = torch.tensor([[0.0, 1], [0.8, 0.6], [0, 2], [0, 3]])
    attention = torch.tensor([[0.25, 0.30, 0.10, 0.05], [0.35, 0.40, 0.20, 0.10]])
    arrays = {"cls_attention": attention[None], "hidden_mean": hidden[None], "raw": hidden[None]}
    tokens = VisualTokens(("0",), (1, 4), arrays)
    official, fixed = (Nuwa(distance=4.0, quirks=quirks).prune(tokens, 2) for quirks in ("official", "fixed"))
    assert official.index.tolist() == fixed.index.tolist() == [[1, 2]]
    assert official.merge.space == "raw"
    whole = 0.3 + 1 + 0.5
    np.testing.assert_allclose(
        official.merge.weights[0], [[0, 1, 0, 0], [0, 0.3 / whole, 1, 0.5 / whole]], rtol=1e-6, atol=0
    )
    np.testing.assert_allclose(
        fixed.merge.weights[0], [[0, 1, 0, 0], [0, 0.3 / whole, 1 / whole, 0.5 / whole]], rtol=1e-6, atol=0
    )


def expected(tokens, keep: int, offers: int, quirks: str) -> tuple[list[int], np.ndarray]:
    """For grids of whole cells of 2 x 2 patches."""
    found = naive.arrays(tokens)
    (rows, columns), patches = tokens.grid, tokens.patches
    score = {patch: sum(head[patch] for head in found["cls_attention"]) for patch in range(patches)}
    candidates = []
    for top in range(0, rows, 2):
        for left in range(0, columns, 2):
            cell = [top * columns + left, top * columns + left + 1, (top + 1) * columns + left]
            cell.append(cell[2] + 1)
            candidates += naive.best({patch: score[patch] for patch in cell}, offers)
    kept = sorted(naive.best({patch: score[patch] for patch in candidates}, keep))
    threshold = np.quantile([score[patch] for patch in kept], 0.55)
    weights = np.zeros((keep, patches))
    for row, patch in enumerate(kept):
        if score[patch] < threshold * (1 - 1e-6):
            for other in range(patches):
                distance = math.dist(divmod(patch, columns), divmod(other, columns))
                alike = max(0, naive.cosine(found["hidden_mean"][patch], found["hidden_mean"][other]))
                weights[row, other] = alike * max(0, 1 - distance / math.sqrt(280))
            weights[row] /= weights[row].sum()
        if quirks == "official" or score[patch] >= threshold * (1 - 1e-6):
            weights[row, patch] = 1
    return kept, weights


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize(("keep", "offers"), [(112, 1), (224, 2), (336, 3), (1, 1), (145, 2), (433, 4)])
def test_it_is_its_maths_at_the_published_budgets_and_at_others(keep, offers, quirks):
    tokens = visual_tokens((24, 24), images=1, seed=keep)
    pruned = Nuwa(quirks=quirks).prune(tokens, keep)
    index, weights = expected(tokens, keep, offers, quirks)
    assert pruned.index.tolist() == [index]
    np.testing.assert_allclose(pruned.merge.weights[0].double(), weights, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_its_maths_on_another_grid(seed):
    tokens = visual_tokens((4, 10), images=1, seed=seed)
    for keep in range(1, 41):
        pruned = Nuwa().prune(tokens, keep)
        index, weights = expected(tokens, keep, -(-keep // 10), "official")
        assert pruned.index.tolist() == [index]
        np.testing.assert_allclose(pruned.merge.weights[0].double(), weights, rtol=2e-5, atol=1e-8)


def test_fixed_weights_are_means():
    weights = Nuwa(quirks="fixed").prune(visual_tokens((5, 7)), 9).merge.weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 9))
