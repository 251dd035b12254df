"""TRIM against a case by hand and against its maths, written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_prune.pruners.trim import Trim
from stage2_prune.pruning.tokens import ClipText, VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens


def asked(products: list[float], grid: tuple[int, int]) -> VisualTokens:
    """An image whose patches have these products with the text (2, 0)."""
    patches = torch.tensor([[product / 2, float(place)] for place, product in enumerate(products)])
    text = ClipText(torch.tensor([[[2.0, 0.0], [9.0, 9.0]]]), torch.zeros(1, 1, 2), 100.0)
    return VisualTokens(("0",), grid, {"clip_patches": patches[None], "raw": patches[None]}, clip_text=text)


def test_five_patches_by_hand():
    # The least alike come first: 3, 1, 4. Kept patches stand in raster order, the mean of the others behind them.
    tokens = asked([0.5, -1.0, 0.2, -2.0, -0.5], (1, 5))
    weights = {keep: Trim().prune(tokens, keep).merge.weights[0] for keep in range(1, 6)}
    assert torch.equal(weights[1], torch.full((1, 5), 0.2))
    assert torch.equal(weights[2], torch.tensor([[0, 0, 0, 1.0, 0], [0.25, 0.25, 0.25, 0, 0.25]]))
    thirds = torch.tensor([[0, 1.0, 0, 0, 0], [0, 0, 0, 1, 0], [1 / 3, 0, 1 / 3, 0, 1 / 3]])
    torch.testing.assert_close(weights[3], thirds)
    assert torch.equal(weights[4][-1], torch.tensor([0.5, 0, 0.5, 0, 0]))
    assert torch.equal(weights[5], torch.eye(5))


def test_outliers_by_hand():
    # e to minus the product: 1, 2, 3, 4, 5, 6, 7, 20, 30 up to the softmax's factor. Quartiles of 9 values are the 3rd and
    # the 7th: 3 and 7; more than 7 + 1.5 x 4 = 13 are 20 and 30.
    tokens = asked([-float(np.log(power)) for power in (5, 30, 1, 2, 20, 3, 4, 6, 7)], (3, 3))
    pruned = Trim(count="outliers").prune(tokens, 9)
    assert pruned.counts.tolist() == [3]
    assert torch.equal(pruned.merge.weights, Trim().prune(tokens, 3).merge.weights)
    assert pruned.merge.weights[0, :2].argmax(-1).tolist() == [1, 4]


def test_an_image_without_outliers_is_its_mean():
    pruned = Trim(count="outliers").prune(asked([0.1, 0.2, 0.3, 0.4], (2, 2)), 4)
    assert pruned.counts.tolist() == [1]
    assert torch.equal(pruned.merge.weights, torch.full((1, 1, 4), 0.25))


def expected(tokens: VisualTokens, image: int, count: int | None) -> np.ndarray:
    """Section A.9 of the reference, one number at a time."""
    text = tokens.clip_text.pooled[image, 0].double().numpy()
    products = [-float(patch.double().numpy() @ text) for patch in tokens.arrays["clip_patches"][image]]
    powers = [np.exp(product - max(products)) for product in products]
    score = {patch: power / sum(powers) for patch, power in enumerate(powers)}
    if count is None:
        ordered, last = sorted(score.values()), tokens.patches - 1
        low, high = (
            ordered[int(part * last)] + (part * last) % 1 * (ordered[int(part * last) + 1] - ordered[int(part * last)])
            for part in (0.25, 0.75)
        )
        count = sum(value > high + 1.5 * (high - low) for value in score.values())
    kept = sorted(naive.best(score, count))
    rest = [patch for patch in range(tokens.patches) if patch not in kept]
    weights = naive.picks([*kept, kept[0] if kept else 0], tokens.patches)
    weights[-1] = [(patch in rest) / len(rest) for patch in range(tokens.patches)]
    return weights


@pytest.mark.parametrize("grid", [(4, 6), (24, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_its_maths_by_budget_and_by_outliers(seed, grid):
    tokens = visual_tokens(grid, seed=seed)
    ragged = Trim(count="outliers").prune(tokens, tokens.patches)
    assert len(set(ragged.counts.tolist())) > 1
    for image in range(3):
        for keep in (1, 2, 5, 17, 23):
            weights = Trim().prune(tokens, keep).merge.weights[image]
            np.testing.assert_allclose(weights, expected(tokens, image, keep - 1), rtol=1e-6)
        own = ragged.merge.weights[image, : ragged.counts[image]]
        np.testing.assert_allclose(own, expected(tokens, image, None), rtol=1e-6)


def test_products_too_far_apart_for_a_softmax_in_float32_are_still_ranked():
    tokens = asked([-500.0, 0.0, 100.0, -1.0, 50.0], (1, 5))
    assert Trim().prune(tokens, 4).merge.weights[0, :3].argmax(-1).tolist() == [0, 1, 3]


def test_outliers_are_each_images_own():
    tokens = visual_tokens((4, 6))
    spread = replace(tokens, arrays=dict(tokens.arrays))
    spread.arrays["clip_patches"] = tokens.arrays["clip_patches"] * torch.tensor([0.01, 1, 3])[:, None, None]
    together = Trim(count="outliers").prune(spread, 24).counts.tolist()
    assert together == [Trim(count="outliers").prune(spread.one(image), 24).counts.item() for image in range(3)]
