"""Gap closed, by hand."""

import numpy as np
import pytest

from stage2_prune.compare.gap import gap_closed
from stage2_prune.evaluation.intervals import ratio_interval

IMAGES = ["a", "a", "b", "b", "c", "c", "d", "d"]
CEILING = np.array([1, 1, 1, 1, 1, 1, 1, 0.0])
RANDOM = np.array([0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0])
METHOD = np.array([1, 0, 1, 0, 1, 0, 1, 1.0])


def test_a_method_closes_its_share_of_the_gap_between_random_and_searched_patches():
    closed, ends = gap_closed(METHOD, RANDOM, CEILING, IMAGES, 200, 0)
    assert closed == pytest.approx((5 / 8 - 2 / 8) / (7 / 8 - 2 / 8)) == pytest.approx(0.6)
    assert ends is not None and ends[0] < 0.6 < ends[1]


def test_random_closes_nothing_and_the_searched_patches_close_all_in_every_draw():
    assert gap_closed(RANDOM, RANDOM, CEILING, IMAGES, 200, 0) == (0, (0, 0))
    closed, ends = gap_closed(CEILING, RANDOM, CEILING, IMAGES, 200, 0)
    assert closed == pytest.approx(1) and ends == pytest.approx((1, 1))


def test_a_gap_below_a_twentieth_is_not_divided():
    assert gap_closed(METHOD, CEILING, CEILING + 0.049, IMAGES, 200, 0) == (None, None)
    assert gap_closed(METHOD, CEILING, CEILING + 0.051, IMAGES, 200, 0)[0] is not None


def test_of_one_image_there_is_no_interval_and_none_where_draws_have_no_gap():
    assert gap_closed(METHOD, RANDOM, CEILING, ["a"] * 8, 200, 0)[1] is None
    below = np.array([1.0, -1, 0.2])
    assert ratio_interval(np.ones(3), below, np.arange(3), 200, 0) is None


def test_an_interval_draws_images_and_not_questions():
    image = np.array([0, 0, 1, 1])
    above, below = np.array([1.0, -1, 1, -1]), np.ones(4)
    assert ratio_interval(above, below, image, 100, 0) == (0, 0)
    assert ratio_interval(above, below, np.arange(4), 100, 0) != (0, 0)
