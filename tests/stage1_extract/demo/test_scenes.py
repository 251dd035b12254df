"""Scenes: a pure function of (seed, index), with a ground truth that is counted in the pixels."""

from collections import Counter

import numpy as np
import pytest

from stage1_extract.demo.scenes import (
    COLORS,
    GRID,
    IMAGE_SIZE,
    MIN_SHARE,
    PATCH_SIZE,
    SHAPES,
    off_centre,
    scene,
    unique,
)

MANY = 80


@pytest.fixture(scope="module")
def scenes():
    return [scene(0, index) for index in range(MANY)]


def color_mask(drawn, color: str) -> np.ndarray:
    return (np.asarray(drawn.image) == np.array(COLORS[color])).all(-1)


def test_a_scene_is_a_function_of_its_seed_and_index_whatever_was_drawn_before():
    first = scene(3, 5)
    scene(3, 6)
    again = scene(3, 5)
    assert first.objects == again.objects
    assert first.image.tobytes() == again.image.tobytes()


@pytest.mark.parametrize("other", [(3, 6), (4, 5)])
def test_another_seed_or_index_is_another_scene(other):
    assert scene(3, 5).image.tobytes() != scene(*other).image.tobytes()


def test_images_have_the_size_that_the_tower_takes_so_that_the_processor_resizes_nothing(scenes):
    assert {drawn.image.size for drawn in scenes} == {(IMAGE_SIZE, IMAGE_SIZE)}
    assert {drawn.image.mode for drawn in scenes} == {"RGB"}
    assert GRID * PATCH_SIZE == IMAGE_SIZE


def test_there_are_two_to_four_objects_and_no_two_look_the_same(scenes):
    assert {len(drawn.objects) for drawn in scenes} == {2, 3, 4}
    for drawn in scenes:
        assert len({(item.color, item.shape) for item in drawn.objects}) == len(drawn.objects)


def test_every_color_and_shape_occurs(scenes):
    assert Counter(item.color for drawn in scenes for item in drawn.objects).keys() == set(COLORS)
    assert Counter(item.shape for drawn in scenes for item in drawn.objects).keys() == set(SHAPES)


def test_the_patches_of_an_object_are_those_whose_pixels_show_its_color(scenes):
    checked = 0
    for drawn in scenes:
        for item in unique(drawn.objects, "color"):
            mask = color_mask(drawn, item.color).reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE)
            shares = mask.mean((1, 3)).ravel()
            np.testing.assert_allclose(item.cover().ravel(), shares, atol=1 / PATCH_SIZE**2)
            far = np.abs(shares - MIN_SHARE) > 1 / PATCH_SIZE**2
            told = np.isin(np.arange(GRID * GRID), item.patches())
            assert ((shares >= MIN_SHARE) == told)[far].all()
            checked += 1
    assert checked > MANY


def test_objects_never_share_a_pixel(scenes):
    for drawn in scenes:
        assert np.stack([item.cover() for item in drawn.objects]).sum(0).max() <= 1


def test_an_object_clearly_on_one_side_has_all_its_patches_there(scenes):
    for drawn in scenes:
        for item in off_centre(drawn.objects):
            columns = np.array(item.patches()) % GRID
            assert ((columns < GRID // 2) == (item.side == "left")).all()


def test_every_scene_has_a_unique_shape_a_unique_color_and_an_object_on_one_side(scenes):
    for drawn in scenes:
        assert unique(drawn.objects, "shape")
        assert unique(drawn.objects, "color")
        assert off_centre(drawn.objects)
