"""Tests of significance against enumeration, hand computation and simulation."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_prune.intervals import interval
from stage2_prune.significance import holm, kl_divergence, mcnemar, mean_p

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize("flips", range(11))
def test_mcnemars_p_is_the_share_of_all_coin_tosses_that_are_as_uneven(flips):
    for wrong in range(flips + 1):
        uneven = abs(flips - 2 * wrong)
        tosses = [abs(flips - 2 * sum(toss)) >= uneven for toss in product((0, 1), repeat=flips)]
        assert mcnemar(wrong, flips - wrong) == float(Fraction(sum(tosses), len(tosses)))


def test_mcnemars_p_is_that_of_a_published_example():
    assert mcnemar(1, 8) == 2 * (1 + 9) / 2**9  # by hand: the binomial tail of 1 of 9
    assert mcnemar(0, 5) == 0.0625


def test_no_flip_and_even_flips_are_no_evidence():
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(7, 7) == mcnemar(7, 8) == 1


def test_mcnemars_p_is_exact_for_counts_that_overflow_a_float():
    found = mcnemar(4900, 5100)
    tail = sum(math.comb(10_000, k) for k in range(4901))
    assert found == float(Fraction(2 * tail, 2**10_000))
    assert mcnemar(0, 5000) == 0


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_does_not_ask_which_side_is_which_and_falls_with_imbalance(a, b):
    assert mcnemar(a, b) == mcnemar(b, a)
    assert 0 < mcnemar(a, b) <= 1
    if a < b:
        assert mcnemar(a, b + 1) <= mcnemar(a, b)


def test_holms_p_values_are_those_worked_out_by_hand():
    # Sorted: .005, .011, .02, .04 times 4, 3, 2, 1 = .02, .033, .04, .04, and none below the one before it.
    np.testing.assert_allclose(holm([0.02, 0.005, 0.04, 0.011]), [0.04, 0.02, 0.04, 0.033])
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])  # .04 is lifted to .06
    assert holm([0.7, 0.6]) == [1, 1]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


@settings(deadline=None, max_examples=100, derandomize=True)
@given(P_VALUES, st.floats(0.001, 0.999))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    rejected = set()
    for step, test in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[test] * (len(p_values) - step) > alpha:
            break
        rejected.add(test)
    assert {test for test, p in enumerate(holm(p_values)) if p <= alpha} == rejected


@settings(deadline=None, max_examples=100, derandomize=True)
@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferronis_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, found in zip(p_values, adjusted, strict=True):
        assert p <= found <= min(1, p * len(p_values))
    for one, other in product(range(len(p_values)), repeat=2):
        if p_values[one] <= p_values[other]:
            assert adjusted[one] <= adjusted[other]


def test_seeds_give_twice_their_mean_and_one_alone_itself():
    assert mean_p([0.2]) == 0.2
    assert mean_p([0.01, 0.03]) == pytest.approx(0.04)
    assert mean_p([0.9, 0.9]) == 1


def test_p_values_over_seeds_that_hang_together_reject_a_true_null_no_more_often_than_they_may():
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(2000):
        shared = generator.random()
        rejected += mean_p([shared if generator.random() < 0.7 else generator.random() for _ in range(5)]) <= 0.1
    assert rejected / 2000 <= 0.1


def test_a_divergence_is_that_worked_out_by_hand_and_zero_only_for_equal_weighing():
    true, other = {"yes": math.log(0.5), "no": math.log(0.5)}, {"no": math.log(0.75), "yes": math.log(0.25)}
    assert kl_divergence(true, other) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert kl_divergence(true, true) == 0
    assert kl_divergence({"yes": 0.0}, {"yes": 1e-6}) == 0  # rounded log-probabilities may sum to more than one


def covered(clustered, runs=300, images=60, each=6):
    """Share of simulated paired evaluations whose interval holds the true difference of -0.1."""
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(images), each)
    hits = 0
    for run in range(runs):
        hard = np.repeat(generator.random(images) < 0.5, each)  # half of the images lose 0.2 together, half nothing
        right = generator.random(len(image)) < 0.8
        lost = right & hard & (generator.random(len(image)) < 0.25)
        low, high = interval(-lost.astype(float), image if clustered else np.arange(len(image)), 400, run)
        hits += low <= -0.1 <= high
    return hits / runs


def test_intervals_of_differences_cover_the_truth_where_questions_of_an_image_hang_together():
    assert 0.91 <= covered(clustered=True) <= 0.98
    assert covered(clustered=False) < 0.91  # why images are resampled, not questions
