import hashlib

import numpy as np
import pytest
import torch

from stage2_prune.pruners.prune_sid import PruneSid
from tests.stage2_prune.pruners.images import NAMES, clustered, cosines, descending, given


def exact_components(raw, count):
    """The right singular vectors of sigmoid(x) transposed and centred, by NumPy."""
    features = 1 / (1 + np.exp(-raw.double().numpy().T))
    return np.linalg.svd(features - features.mean(axis=0, keepdims=True))[2][:count].T


def random_components(raw, count, seed, image_id):
    """The randomised decomposition that the official code calls, after a seed made of (seed, image id)."""
    digest = hashlib.sha256(f"{seed} {image_id}".encode()).digest()
    before = torch.get_rng_state()
    torch.manual_seed(int.from_bytes(digest[:16], "big") % 2**63)
    components = torch.pca_lowrank(raw.sigmoid().T, q=count)[2]
    torch.set_rng_state(before)
    return components.numpy()


def suppressed_in_rounds(group, similarity, saliency, threshold):
    """Of one group: what survives, in the order in which it is found, and then the rest by falling score."""
    left, survivors = set(group), []
    while left:
        survivors.append(descending({patch: saliency[patch] for patch in left})[0])
        left = {i for i in left if i != survivors[-1] and similarity[survivors[-1]][i] <= threshold}
    return survivors, descending({patch: saliency[patch] for patch in group if patch not in survivors})


def budgets(members, survivors, total):
    """How many patches each group gets: `total` counts the CLS row."""
    groups = range(len(members))
    least = [min(1, m) for m in members]
    bound = 5 * -(-total // 64)
    most = [min(bound, members[g], survivors[g]) for g in groups]
    while sum(most) < total:
        most = [min(most[g] + 1, members[g]) for g in groups]
    others = max(0, total - sum(least) - 1)
    reached, before, quota = 0.0, 0, []
    for g in groups:  # in single precision, as halves are rounded
        reached += float(np.float32(survivors[g]) / np.float32(sum(survivors)))
        now = int(np.round(np.float32(reached) * np.float32(others)))
        quota.append(min(now - before + least[g], most[g]))
        before = now
    for g in sorted(groups, key=lambda g: -survivors[g]):
        quota[g] += min(most[g] - quota[g], others + sum(least) - sum(quota))
    return quota


def chosen(components, similarity, saliency, total):
    """Section A.24b of the reference, line by line, without its CLS row: total - 1 patches."""
    patches = range(len(similarity))
    group_of = [int(np.argmax(np.abs(row))) for row in components]
    threshold = total / 32 * np.mean([similarity[i][j] for i in patches for j in patches if i < j])
    groups = [[i for i in patches if group_of[i] == g] for g in range(components.shape[1])]
    ranked = [suppressed_in_rounds(group, similarity, saliency, threshold) for group in groups]
    quota = budgets([len(group) for group in groups], [len(survivors) for survivors, _ in ranked], total)
    return [patch for (first, then), count in zip(ranked, quota, strict=True) for patch in (first + then)[:count]]


@pytest.mark.parametrize("quirks", ["official", "fixed"])
@pytest.mark.parametrize("seed", range(3))
def test_a_budget_with_one_more_for_the_cls_row_keeps_the_patches_of_a_naive_loop(seed, quirks):
    tokens = clustered(seed, (6, 8), width=32)
    for image, raw in enumerate(tokens.arrays["raw"]):
        saliency = tokens.arrays["cls_attention"][image].double().sum(0).tolist()
        for keep in (1, 2, 5, 7, 11, 15, 23, 31, 46, 47):
            count = max(1, (keep + 1) // 4)
            exact = quirks == "fixed"
            components = exact_components(raw, count) if exact else random_components(raw, count, seed, NAMES[image])
            expected = chosen(components, cosines(raw), saliency, keep + 1)
            assert len(expected) == keep
            assert PruneSid(seed=seed, quirks=quirks).select(tokens, keep)[image].tolist() == expected


def test_on_24x24_patches_a_naive_loop_keeps_the_same():
    tokens = clustered(3, (24, 24), images=1, width=192)
    raw = tokens.arrays["raw"][0]
    saliency = tokens.arrays["cls_attention"][0].double().sum(0).tolist()
    for keep in (63, 127, 191):
        expected = chosen(random_components(raw, (keep + 1) // 4, 0, NAMES[0]), cosines(raw), saliency, keep + 1)
        assert PruneSid().select(tokens, keep)[0].tolist() == expected


def test_what_repeats_a_more_attended_patch_of_its_group_comes_after_what_does_not():
    # A budget of 3, 4 with the CLS row: one group of all. Cosines: patches 0 and 1 are alike (1), every other pair is at
    # right angles or opposite: 0-2 0, 1-2 0, 0-3 -1, 1-3 -1, 2-3 0; their mean is -1/6, times 4/32 -0.021. More than that
    # suppresses: 0 is best and suppresses 1 and 2, but not 3. So 0, 3, then the rest by attention: 2, 1.
    image = given((1, 4), raw=[[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], cls_attention=[[0.4, 0.1, 0.3, 0.2]])
    assert PruneSid().select(image, 3).tolist() == [[0, 3, 2]]
    assert PruneSid().select(image, 2).tolist() == [[0, 3]]
    assert PruneSid().select(image, 4).tolist() == [[0, 1, 2, 3]], "all of them: in raster order"
