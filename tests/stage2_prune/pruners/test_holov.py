import math

import numpy as np
import pytest
import torch

from stage2_prune.errors import PrunerMisused
from stage2_prune.pruners.holov import Holov
from tests.stage2_prune.pruners.images import clustered, cosines, descending, given

UNIFORM = [[1.0, 0.0]] * 16


def chosen(features, attention, chunks, keep):
    """Section A.17 of the reference: the patches that the official code keeps, without its zero vectors."""
    similarity = cosines(features)
    weight = []
    for chunk in chunks:
        n = len(chunk)
        inside = [[similarity[i][j] if i != j else 0.0 for j in chunk] for i in chunk]
        mean = [sum(row) / (n - 1) for row in inside]
        variance = [sum((s - m) ** 2 for s in row) / (n - 1) for row, m in zip(inside, mean, strict=True)]
        scaled = [1e3 * attention[i] for i in chunk]
        rescale = np.mean(np.abs(scaled)) / (np.mean(np.abs(variance)) + 1e-6)
        weight.append(np.mean([a + 0.09 * rescale * v for a, v in zip(scaled, variance, strict=True)]))
    share = [w / (sum(weight) + 1e-6) * keep for w in weight]
    assert min(abs(s - round(s)) for s in share) > 1e-5, "a quota on an integer: take other inputs"
    quota = [math.floor(s) for s in share]
    for chunk in descending(dict(enumerate(weight)))[: keep - sum(quota)]:
        quota[chunk] += 1
    kept = []
    for chunk, count in zip(chunks, quota, strict=True):
        by_attention = descending({patch: attention[patch] for patch in chunk})
        kept += list(chunk) if count >= len(chunk) else by_attention[:count]
    return kept


def mean_attention(tokens, image):
    return tokens.arrays["cls_attention"][image].double().numpy().mean(axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_24x24_patches_are_cut_into_16_runs_of_36(seed):
    tokens = clustered(seed, (24, 24), heads=16)
    runs = [range(36 * chunk, 36 * chunk + 36) for chunk in range(16)]
    for image in range(2):
        for keep in (16, 64, 128, 192):
            expected = chosen(tokens.arrays["projected"][image], mean_attention(tokens, image), runs, keep)
            assert len(expected) == keep
            for quirks in ("official", "fixed"):
                assert Holov(quirks=quirks).select(tokens, keep)[image].tolist() == expected
                pruned = Holov(quirks=quirks).prune(tokens, keep)
                index = pruned.merge.weights.argmax(-1) if quirks == "official" else pruned.index
                assert index[image].tolist() == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_paper_cuts_the_image_into_4x4_crops(seed):
    tokens = clustered(seed, (8, 12), heads=16)
    crops = [
        [12 * row + column for row in range(2 * down, 2 * down + 2) for column in range(3 * right, 3 * right + 3)]
        for down in range(4)
        for right in range(4)
    ]
    for image in range(2):
        for keep in (5, 16, 33):
            expected = chosen(tokens.arrays["projected"][image], mean_attention(tokens, image), crops, keep)
            assert len(expected) == keep
            assert Holov(quirks="paper").select(tokens, keep)[image].tolist() == expected


def test_a_share_is_rounded_down_and_the_largest_chunks_get_what_is_left():
    # Equal features, so weights are as the mean attention: 4 chunks with sums 0.40, 0.30, 0.20, 0.10. Of 7 tokens that is
    # 2.8, 2.1, 1.4, 0.7: 2, 2, 1, 0, and the 2 that are left go to the two largest: 3, 3, 1, 0. In a chunk by attention.
    attention = [0.05, 0.15, 0.08, 0.12, 0.09, 0.05, 0.06, 0.10, 0.02, 0.08, 0.04, 0.06, 0.01, 0.02, 0.03, 0.04]
    image = given((4, 4), projected=UNIFORM, cls_attention=[attention])
    assert Holov(chunks=4).select(image, 7).tolist() == [[1, 3, 2, 7, 4, 6, 9]]


@pytest.mark.parametrize("quirks", ["official", "fixed"])
def test_a_chunk_of_one_patch_is_weighed_by_its_attention_as_it_is_and_all_others_by_a_thousandfold(quirks):
    # Runs of 2, 2 and 1 patches. Two equal features: each row of similarities is 0 and 1, mean 1, variance 1, rescaled to
    # the mean attention: 1.09 x 1000 x 0.15 = 163.5 and 1.09 x 1000 x 0.1 = 109, but 0.5 for the last. Of 3 tokens that is
    # 1.797, 1.198 and 0.005: 1, 1, 0, and the one that is left goes to the first.
    image = given((1, 5), projected=[[1.0, 0.0]] * 5, cls_attention=[[0.1, 0.2, 0.15, 0.05, 0.5]])
    assert Holov(chunks=3, quirks=quirks).select(image, 3).tolist() == [[0, 1, 2]]


def test_what_a_full_chunk_cannot_take_is_zeros_officially_and_goes_to_the_next_best_when_fixed():
    # 4 chunks with sums 0.70, 0.16, 0.10, 0.04. Of 8 tokens: 5.6, 1.28, 0.8, 0.32, so 5, 1, 0, 0, and one more each for
    # the two largest: 6, 2, 0, 0. The first has only 4 patches, kept in raster order; 2 tokens are missing. Fixed, they
    # go to the next best ones with room, one each: 4, 3, 1, 0.
    attention = [0.1, 0.2, 0.3, 0.1, 0.01, 0.05, 0.06, 0.04, 0.01, 0.02, 0.03, 0.04, 0.01, 0.01, 0.01, 0.01]
    image = given((4, 4), projected=UNIFORM, cls_attention=[attention])
    assert Holov(chunks=4).select(image, 8).tolist() == [[0, 1, 2, 3, 6, 5, 7, 11]]
    official = Holov(chunks=4, quirks="official")
    with pytest.raises(PrunerMisused, match="zero vectors"):
        official.select(image, 8)
    pruned = official.prune(image, 8)
    assert pruned.index is None
    tokens = pruned.merge.weights @ image.arrays["projected"]
    assert torch.equal(tokens, torch.tensor([[[1.0, 0.0]] * 6 + [[0.0, 0.0]] * 2]))


def test_official_tokens_are_of_one_kind_whether_or_not_an_image_is_filled_up():
    pruner = Holov(quirks="official")
    tokens = clustered(5, (24, 24))
    for keep in (64, 300, 575):
        pruned = pruner.prune(tokens, keep)
        assert pruned.index is None and pruned.merge.weights.shape[1] == keep
        assert set(pruned.merge.weights.sum(-1).flatten().tolist()) <= {0.0, 1.0}


def test_the_variance_moves_nothing():
    tokens = clustered(5, (24, 24))
    assert torch.equal(Holov(alpha=0.0).select(tokens, 100), Holov(alpha=0.5).select(tokens, 100))
