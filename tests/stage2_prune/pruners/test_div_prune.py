import numpy as np
import pytest

from stage2_prune.pruners.div_prune import DivPrune
from tests.stage2_prune.pruners.images import at_angles, best, clustered, cosines, given


def found_in_order(similarity, keep):
    """Section A.10 of the reference, step by step."""
    distance = 1 - similarity
    everywhere = range(len(distance))
    nearest = {j: sorted(distance[i][j] for i in everywhere)[1] for j in everywhere}  # [0] is the patch itself
    found = [best(nearest)]
    while len(found) < keep:
        found.append(best({j: min(distance[i][j] for i in found) for j in everywhere if j not in found}))
    return found


def test_the_farthest_from_all_that_are_kept_comes_next():
    # Angles 0, 10, 90, 200. Distances 1 - cos to the nearest other: 1 - cos 10 = 0.015 (0 and 10), 1 - cos 80 = 0.826
    # (90), 1 - cos 110 = 1.342 (200): patch 3 is first. From it: 1 - cos 160 = 1.940, 1 - cos 170 = 1.985, 1.342:
    # patch 1. To the nearer of 3 and 1: patch 0 min(1.940, 0.015), patch 2 min(1.342, 0.826): patch 2; then patch 0.
    image = given((2, 2), projected=at_angles(0, 10, 90, 200))
    in_order = [3, 1, 2, 0]
    for keep in range(1, 5):
        assert DivPrune(quirks="paper").select(image, keep).tolist() == [in_order[:keep]]
        assert DivPrune().select(image, keep).tolist() == [sorted(in_order[:keep])]


@pytest.mark.parametrize("seed", range(4))
def test_a_naive_greedy_finds_the_same_patches_in_the_same_order(seed):
    tokens = clustered(seed, (6, 8))
    for image in range(2):
        order = found_in_order(cosines(tokens.arrays["projected"][image]), 48)
        for keep in (1, 2, 5, 17, 31, 47, 48):
            assert DivPrune(quirks="paper").select(tokens, keep)[image].tolist() == order[:keep]
            assert DivPrune().select(tokens, keep)[image].tolist() == sorted(order[:keep])


def test_a_repeated_patch_is_found_once_and_of_equals_the_lower_one():
    # Patches 0 and 1 are alike, 2 and 3 too: every nearest distance is 0, so patch 0 is first; then 2, and 1 and 3 last.
    image = given((2, 2), projected=[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert DivPrune(quirks="paper").select(image, 4).tolist() == [[0, 2, 1, 3]]


def test_on_24x24_patches_a_naive_greedy_finds_the_same():
    tokens = clustered(7, (24, 24), images=1, width=32)
    distance = 1 - cosines(tokens.arrays["projected"][0])
    found = [best(dict(enumerate(np.sort(distance, axis=0)[1])))]
    while len(found) < 64:
        found.append(best({j: d for j, d in enumerate(distance[found].min(axis=0)) if j not in found}))
    assert DivPrune().select(tokens, 64)[0].tolist() == sorted(found)
