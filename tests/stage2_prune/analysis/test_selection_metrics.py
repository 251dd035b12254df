"""Every metric against a number worked out by hand or a loop that follows its sentence."""

import itertools
import math

import numpy as np
import pytest
import torch

from stage2_prune.analysis.clustering import leaf_order
from stage2_prune.analysis.metrics import (
    Coverage,
    duplicates,
    jaccard,
    jaccard_by_chance,
    padding,
    question_sensitivity,
    recall,
)
from stage2_prune.evaluation.intervals import interval, intervals
from stage2_prune.primitives.similarity import cosine_similarity


def marked(places, count=12):
    found = torch.zeros(count, dtype=torch.bool)
    found[list(places)] = True
    return found


def random_masks(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def test_jaccard_is_what_sets_say():
    one, other = random_masks((3, 5, 12)), random_masks((2, 5, 12), seed=1)
    found = jaccard(one, other)
    assert found.shape == (5, 3, 2)
    for question, a, b in itertools.product(range(5), range(3), range(2)):
        sets = [set(mask[question].nonzero().flatten().tolist()) for mask in (one[a], other[b])]
        assert found[question, a, b].item() == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


def test_two_methods_that_keep_nothing_keep_the_same():
    assert jaccard(marked([])[None, None], marked([])[None, None]).item() == 1


@pytest.mark.parametrize(("patches", "keep"), [(4, 1), (5, 2), (5, 4), (6, 3), (5, 5)])
def test_chance_is_the_mean_over_all_pairs_of_choices(patches, keep):
    choices = [set(choice) for choice in itertools.combinations(range(patches), keep)]
    every = [len(a & b) / len(a | b) for a in choices for b in choices]
    assert jaccard_by_chance(patches, keep) == pytest.approx(np.mean(every))


def test_chance_is_known_at_the_real_geometry():
    assert jaccard_by_chance(576, 192) == pytest.approx(0.2, abs=0.002)
    assert jaccard_by_chance(576, 0) == 1 == jaccard_by_chance(576, 576)


def test_the_distance_to_the_nearest_kept_patch_is_worked_out_by_hand():
    # 2 x 3 patches of which the first is kept: 0, 1, 2 above, and 1, sqrt 2, sqrt 5 below
    coverage = Coverage((2, 3))
    expected = (0 + 1 + 2 + 1 + math.sqrt(2) + math.sqrt(5)) / 6
    assert coverage.nearest(marked([0], 6)) == pytest.approx(expected)
    assert coverage.nearest(marked(range(6), 6)) == 0
    assert math.isnan(coverage.nearest(marked([], 6)))


def test_the_distance_is_that_of_a_naive_loop_on_a_grid_that_is_no_square():
    kept = random_masks((4 * 7,))
    places = [divmod(patch, 7) for patch in range(28)]
    nearest = [min(math.dist(place, places[k]) for k in kept.nonzero().flatten().tolist()) for place in places]
    assert Coverage((4, 7)).nearest(kept) == pytest.approx(np.mean(nearest), rel=1e-6)


def test_cells_are_counted_once_however_many_of_their_patches_are_kept():
    coverage = Coverage((4, 4), cells=2)
    assert coverage.cells(marked([0, 1, 4, 5], 16)) == 1 / 4
    assert coverage.cells(marked([0, 3, 15], 16)) == 3 / 4
    assert coverage.cells(marked([], 16)) == 0
    assert Coverage((2, 3)).cells(marked([0, 5], 6)) == 2 / 6  # there are no more cells than patches


def test_duplicates_are_the_likest_other_kept_patch():
    raw = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(0))
    places = [1, 4, 5, 9]
    unit = [(raw[0, p] / raw[0, p].norm()).numpy() for p in places]
    expected = np.mean([max(float(a @ b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)])
    assert duplicates(cosine_similarity(raw)[0], marked(places)) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(duplicates(cosine_similarity(raw)[0], marked([3])))


def test_padding_is_the_part_of_the_kept_area_that_is_no_image():
    area = torch.tensor([0.0, 1.0, 0.25, 1.0])
    assert padding(area, marked([0, 2, 3], 4)) == pytest.approx((1 + 0.75 + 0) / 3)
    assert math.isnan(padding(area, marked([], 4)))


def test_recall_is_of_the_object_and_not_of_what_is_kept():
    assert recall(marked([1, 2, 3, 4]), marked([2, 3, 9, 10, 11])) == 0.5
    assert math.isnan(recall(None, marked([2])))


def test_sensitivity_is_the_mean_over_pairs_of_different_questions():
    kept = torch.stack([marked([0, 1]), marked([0, 1]), marked([1, 2]), marked([5, 6])])
    pairs = [1 - 1 / 3, 1.0, 1.0]  # {0,1} {1,2}; {0,1} {5,6}; {1,2} {5,6}; the second asks what the first does
    assert question_sensitivity(kept, ["a", "a", "b", "c"]) == pytest.approx(np.mean(pairs))
    assert math.isnan(question_sensitivity(kept[:2], ["a", "a"]))


def test_intervals_of_columns_are_those_that_interval_gives_one_by_one():
    values = np.random.default_rng(0).random((7, 3))
    low, high = intervals(values, 40, seed=3)
    for column in range(3):
        assert (low[column], high[column]) == pytest.approx(interval(values[:, column], np.arange(7), 40, seed=3))


def test_likeness_puts_what_is_alike_side_by_side():
    alike = np.eye(6)
    for one, other in ((0, 3), (3, 5), (1, 4)):
        alike[one, other] = alike[other, one] = 0.9
    alike[2] = alike[:, 2] = 0.1
    order = leaf_order(alike)
    assert sorted(order) == list(range(6))
    assert sorted(order.index(place) for place in (0, 3, 5)) in ([0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5])
    assert abs(order.index(1) - order.index(4)) == 1
    assert abs(order.index(0) - order.index(3)) == 1 == abs(order.index(3) - order.index(5))
