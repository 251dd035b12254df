"""Tests of significance against enumeration, hand computation and simulation."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_prune.compare.significance import holm, kl_divergence, mcnemar, sign_flips
from stage2_prune.evaluation.intervals import interval

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
    found = mcnemar(700, 800)
    tail = sum(math.comb(1500, k) for k in range(701))
    assert found == float(Fraction(2 * tail, 2**1500))
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


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(-6, 6), max_size=9))
def test_the_test_of_sums_counts_all_ways_to_choose_their_signs(differences):
    found = sign_flips(np.array(differences, dtype=int))
    observed = abs(sum(differences))
    ways = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) >= observed
        for signs in product((-1, 1), repeat=len(differences))
    ]
    assert found == pytest.approx(sum(ways) / len(ways), rel=1e-12)


def test_of_single_answers_the_test_of_sums_is_mcnemars():
    differences = np.array([1] * 5 + [-1] * 2 + [0] * 9)
    assert sign_flips(differences) == sign_flips(5 * differences) == mcnemar(2, 5)


def test_the_test_of_sums_keeps_small_p_values_to_the_last_digits():
    mixed = np.array([2] * 40 + [1] * 40)
    assert sign_flips(mixed) == pytest.approx(2 / 2**80, rel=1e-12)


def test_of_random_methods_no_more_are_called_different_than_may_be():
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(1000):
        easy = generator.random(60)
        a, b = (generator.random((5, 60)) < easy).sum(0), generator.random(60) < easy
        rejected += sign_flips(5 * b - a) <= 0.05
    assert 0.03 <= rejected / 1000 <= 0.06


def test_by_image_a_true_null_survives_where_questions_hang_together_and_by_question_it_does_not():
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(40), 5)
    together, apart = 0, 0
    for _ in range(400):
        moved = generator.choice([-1, 0, 1], size=40)[image] * (generator.random(200) < 0.7)
        together += sign_flips(np.bincount(image, weights=moved).astype(int)) <= 0.05
        apart += sign_flips(moved) <= 0.05
    assert together / 400 <= 0.07 and apart / 400 > 0.2


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
