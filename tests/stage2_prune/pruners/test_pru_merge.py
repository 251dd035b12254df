"""PruMerge and PruMerge+ against a case by hand and against their maths, written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stage2_prune.pruners.pru_merge import PruMerge
from stage2_prune.pruning.tokens import VisualTokens
from tests.stage2_prune.pruners import naive
from tests.stage2_prune.tokens import visual_tokens

ATTENTION = [0.05, 0.20, 0.10, 0.30, 0.15]
KEYS = [[1.0, 0], [0, 1], [1, 0.5], [1, 0.1], [-1, -1]]


def five(pruner: PruMerge, keep: int) -> torch.Tensor:
    arrays = {"last_layer_attention": torch.tensor(ATTENTION)[None], "last_layer_keys": torch.tensor(KEYS)[None]}
    tokens = VisualTokens(("0",), (1, 5), arrays | {"raw": torch.zeros(1, 5, 2)})
    merge = pruner.prune(tokens, keep).merge
    assert merge.space == "raw"
    return merge.weights[0]


def test_five_patches_by_hand():
    # 3 and 1 are kept, in this order. Nearest by key: 0 and 2 to 3, 2 and 3 to 1. The rest, 0, 2 and 4, is the last token.
    expected = [[0.05, 0, 0.10, 1, 0], [0, 1, 0.10, 0.30, 0], [0.05, 0, 0.10, 0, 0.15]]
    assert torch.equal(five(PruMerge(neighbours=2), 3), torch.tensor(expected))


def test_five_patches_by_hand_with_means():
    # The same in raster order, each row weighted by attention and summing to 1.
    expected = [[0, 2 / 6, 1 / 6, 3 / 6, 0], [0.5 / 4.5, 0, 1 / 4.5, 3 / 4.5, 0], [0.5 / 3, 0, 1 / 3, 0, 1.5 / 3]]
    torch.testing.assert_close(five(PruMerge(neighbours=2, quirks="fixed"), 3), torch.tensor(expected))


def test_a_patch_that_plus_takes_twice_is_its_own_neighbour_and_loses_the_first_of_the_rest_by_hand():
    # Top 2 are 3 and 1, steps of 5 // 2 from 1 give 1 and 3: both are there twice, so 0 and 2 are lost from the rest.
    weights = five(PruMerge(plus=True, neighbours=2), 5)
    twice = [0, 1.20, 0, 0.30, 0], [0, 0.20, 0, 1.30, 0]
    # 3 is nearest to itself, then 2 would follow, but it is lost; 1 is next. 1 is nearest to itself, then to 3.
    expected = torch.tensor([twice[1], twice[0], twice[0], twice[1], [0, 0, 0, 0, 0.15]])
    torch.testing.assert_close(weights, expected)


def chosen(attention: dict[int, float], count: int, plus: bool, quirks: str) -> list[int]:
    patches, sampled = len(attention), count // 2 if plus else 0
    step = patches // max(sampled, 1)
    sample = list(range(step // 2, patches, step))[:sampled]
    if quirks == "official":
        return naive.best(attention, count - sampled) + sample
    others = {patch: value for patch, value in attention.items() if patch not in sample}
    return sorted(sample + naive.best(others, count - sampled))


def expected(tokens, keep: int, plus: bool, neighbours: int, quirks: str) -> np.ndarray:
    attention = dict(enumerate(naive.arrays(tokens)["last_layer_attention"]))
    return merged(tokens, chosen(attention, keep - 1, plus, quirks), neighbours, quirks)


def merged(tokens, kept: list[int], neighbours: int, quirks: str) -> np.ndarray:
    found = naive.arrays(tokens)
    patches = tokens.patches
    attention, keep = found["last_layer_attention"], len(kept) + 1
    # What is not kept, as released: kept indices are set to 0, all are sorted, and as many are cut off as are kept.
    rest = sorted(0 if patch in kept else patch for patch in range(patches))[len(kept) :]
    weights = np.zeros((keep, patches))
    for row, patch in enumerate(kept):
        pool = [*kept[:row], *kept[row + 1 :], *rest]
        places = {place: naive.cosine(found["last_layer_keys"][patch], found["last_layer_keys"][other])
                  for place, other in enumerate(pool)}  # fmt: skip
        near = sorted(places, key=lambda place: -places[place])[: min(neighbours, patches - 1)]
        for place in near:
            weights[row, pool[place]] += attention[pool[place]]
        weights[row, patch] += 1 if quirks == "official" else attention[patch]
    for patch in rest:
        weights[keep - 1, patch] = attention[patch]
    return weights if quirks == "official" else weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 64, 145])
def test_it_is_its_maths_at_the_published_geometry(keep, plus, quirks):
    tokens = visual_tokens((24, 24), images=1, seed=keep)
    weights = PruMerge(plus=plus, quirks=quirks).prune(tokens, keep).merge.weights[0]
    np.testing.assert_allclose(weights.double(), expected(tokens, keep, plus, 32, quirks), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_its_maths_at_every_budget_on_a_small_grid(plus, quirks, seed):
    tokens = visual_tokens((4, 6), images=1, seed=seed)
    for keep in range(1, 25):
        for neighbours in (5, 32):
            weights = PruMerge(plus, neighbours, quirks).prune(tokens, keep).merge.weights[0]
            wanted = expected(tokens, keep, plus, neighbours, quirks)
            np.testing.assert_allclose(weights.double(), wanted, rtol=1e-5, atol=1e-9)


def test_plus_at_its_published_count_takes_an_eighth_by_attention_and_an_eighth_by_steps_of_eight():
    tokens = visual_tokens((24, 24), images=1)
    weights = PruMerge(plus=True).prune(tokens, 145).merge.weights[0]
    assert weights[72:144].argmax(-1).tolist() == list(range(4, 575, 8))
    best = naive.best(dict(enumerate(tokens.arrays["last_layer_attention"][0].tolist())), 72)
    assert weights[:72].argmax(-1).tolist() == best


def test_fixed_weights_are_means():
    for keep in range(1, 25):
        for plus in (False, True):
            weights = PruMerge(plus=plus, quirks="fixed").prune(visual_tokens((4, 6)), keep).merge.weights
            torch.testing.assert_close(weights.sum(-1), torch.ones(3, keep))


def with_outliers(grid: tuple[int, int], seed: int, images: int = 1) -> VisualTokens:
    """Attention with a long tail, as that of a real tower."""
    tokens = visual_tokens(grid, images=images, seed=seed)
    logits = torch.randn(images, tokens.patches, generator=torch.Generator().manual_seed(seed))
    return replace(tokens, arrays=dict(tokens.arrays) | {"last_layer_attention": (1.3 * logits).softmax(-1)})


def outlying(attention: list[float]) -> list[int]:
    """Patches above the third quartile by 1.5 interquartile ranges, best first; quartiles by NumPy's rule, written out."""
    ordered, last = sorted(attention), len(attention) - 1
    low, high = (
        ordered[int(part * last)] + (part * last) % 1 * (ordered[int(part * last) + 1] - ordered[int(part * last)])
        for part in (0.25, 0.75)
    )
    found = [patch for patch, value in enumerate(attention) if value > high + 1.5 * (high - low)]
    return sorted(found, key=lambda patch: -attention[patch])


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("grid", [(4, 6), (5, 5), (24, 24)])
@pytest.mark.parametrize("seed", [0, 1])
def test_outliers_decide_how_many_and_plus_adds_a_sample_three_times_as_dense(grid, plus, quirks, seed):
    tokens = with_outliers(grid, seed)
    kept = outlying(tokens.arrays["last_layer_attention"][0].double().tolist())
    assert kept
    if plus:
        # Section A.2: arange(0, 575, int(int(1 / ratio) / 3)) without what is there; 575 is the last of 576 patches.
        step = int(int(1 / (len(kept) / tokens.patches)) / 3)
        kept += [patch for patch in range(0, tokens.patches - 1, step) if patch not in kept]
    kept = sorted(kept) if quirks == "fixed" else kept
    pruned = PruMerge(plus=plus, quirks=quirks, count="outliers").prune(tokens, tokens.patches)
    assert pruned.counts.tolist() == [len(kept) + 1]
    np.testing.assert_allclose(pruned.merge.weights[0], merged(tokens, kept, 32, quirks), rtol=1e-5, atol=1e-9)


def test_without_outliers_plus_takes_the_first_patch_alone_and_prumerge_none():
    tokens = visual_tokens((4, 6), images=1)
    level = replace(tokens, arrays=dict(tokens.arrays) | {"last_layer_attention": torch.full((1, 24), 1 / 24)})
    alone, plus = (PruMerge(plus=plus, count="outliers").prune(level, 24) for plus in (False, True))
    assert alone.counts.tolist() == [1] and torch.equal(alone.merge.weights, torch.full((1, 1, 24), 1 / 24))
    assert plus.counts.tolist() == [2] and plus.merge.weights[0, 0].argmax() == 0


def test_a_sample_of_every_patch_leaves_no_token_for_the_rest():
    # A quarter of 8 patches are outliers, one of them the last, so the sample has step 1 and all are kept.
    attention = torch.tensor([[0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.4, 0.54]])
    tokens = visual_tokens((2, 4), images=1)
    pruned = PruMerge(plus=True, count="outliers").prune(
        replace(tokens, arrays=dict(tokens.arrays) | {"last_layer_attention": attention}), 8
    )
    assert pruned.counts.tolist() == [8]
    assert pruned.merge.weights[0].argmax(-1).tolist()[:2] == [7, 6]
