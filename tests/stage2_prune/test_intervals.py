"""Confidence intervals: images are resampled, not questions."""

import numpy as np

from stage2_prune.evaluation.intervals import by_kind, interval


def test_the_interval_contains_the_mean_and_is_a_function_of_the_seed():
    generator = np.random.default_rng(0)
    right, image = generator.random(60), np.repeat(np.arange(20), 3)
    low, high = interval(right, image, resamples=500, seed=1)
    assert low < right.mean() < high
    assert (low, high) == interval(right, image, resamples=500, seed=1)
    assert (low, high) != interval(right, image, resamples=500, seed=2)


def test_an_interval_agrees_with_a_naive_bootstrap_over_images():
    generator = np.random.default_rng(0)
    image = np.repeat(np.arange(30), generator.integers(1, 6, 30))
    right = generator.random(len(image))
    means = []
    for _ in range(4000):
        drawn = generator.integers(30, size=30)
        means.append(np.concatenate([right[image == one] for one in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(interval(right, image, 4000, 0), expected, atol=0.01)


def test_questions_that_hang_together_widen_the_interval():
    right = np.repeat([0.0, 1.0] * 10, 10)
    together = interval(right, np.repeat(np.arange(20), 10), 500, 0)
    apart = interval(right, np.arange(200), 500, 0)
    assert together[1] - together[0] > 2 * (apart[1] - apart[0])


def test_resampling_in_parts_changes_nothing(monkeypatch):
    right, image = np.arange(12) % 3 / 2, np.arange(12) // 2
    whole = interval(right, image, 50, 0)
    monkeypatch.setattr("stage2_prune.evaluation.intervals._DRAWS_AT_ONCE", 1)
    assert interval(right, image, 50, 0) == whole


def test_a_constant_is_its_own_interval():
    np.testing.assert_allclose(interval(np.full(9, 0.2), np.arange(9) // 2, 50, 0), (0.2, 0.2))


def test_questions_without_a_kind_are_in_no_kind():
    assert by_kind(np.array([1.0, 0.0, 1.0]), ["b", None, "a"]) == {"a": 1.0, "b": 1.0}
