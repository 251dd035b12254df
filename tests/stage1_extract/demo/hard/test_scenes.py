"""The harder scenes: a pure function of (seed, index), with regions that are counted in the pixels."""

import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from stage1_extract.demo.hard.drawing import draw
from stage1_extract.demo.hard.glyphs import GLYPHS, LETTERS, WORDS, glyphs
from stage1_extract.demo.hard.objects import Layout
from stage1_extract.demo.hard.scenes import CLUTTER, VARIED_CLUTTER, layout_of, scene
from stage1_extract.demo.hard.shapes import EDGES, TEXTURES
from stage1_extract.demo.scenes import COLORS, GRID, IMAGE_SIZE, MIN_SHARE, PATCH_SIZE, SHAPES

MANY = 60
DIGEST = "97b46dee8f8779c2c9b2e187dde0dfa0a80c8405ae42eec85648793984886cb5"
"""sha256 of the pixels of the first 20 scenes of seed 0: these are images of the benchmark's training split."""


@pytest.fixture(scope="module")
def scenes():
    return [scene(0, index) for index in range(MANY)]


def pixels(layout: Layout) -> np.ndarray:
    return draw(layout, np.random.default_rng(0)).astype(int)


def changed_patches(layout: Layout, without: Layout) -> np.ndarray:
    """The share of each patch's pixels in which the drawings of two layouts differ."""
    differs = (pixels(layout) != pixels(without)).any(-1)
    return differs.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean((1, 3)).ravel()


def test_the_pixels_of_twenty_scenes_are_those_that_they_always_were(scenes):
    digest = hashlib.sha256(b"".join(drawn.image.tobytes() for drawn in scenes[:20])).hexdigest()
    assert digest == DIGEST


def test_a_scene_is_a_function_of_its_seed_and_index_whatever_was_drawn_before():
    first = scene(3, 5)
    scene(3, 6)
    again = scene(3, 5)
    assert first.layout == again.layout
    assert first.image.tobytes() == again.image.tobytes()
    for other in ((3, 6), (4, 5)):
        assert scene(*other).image.tobytes() != first.image.tobytes()


def test_images_have_the_size_that_the_tower_takes(scenes):
    assert {(drawn.image.size, drawn.image.mode) for drawn in scenes} == {((IMAGE_SIZE, IMAGE_SIZE), "RGB")}


def test_there_are_six_to_twelve_objects_one_or_two_signs_and_as_much_clutter_as_is_said(scenes):
    assert {len(drawn.layout.objects) for drawn in scenes} == set(range(6, 13))
    assert {len(drawn.layout.signs) for drawn in scenes} == {1, 2}
    for drawn in scenes:
        counts = Counter(item.kind for item in drawn.layout.distractors)
        assert all(low <= counts[kind] <= high for kind, (low, high) in vars(CLUTTER).items())


def test_every_look_occurs_and_only_large_objects_have_a_texture_or_a_digit(scenes):
    objects = [item for drawn in scenes for item in drawn.layout.objects]
    for name, values in {"color": COLORS, "shape": SHAPES, "size": EDGES, "texture": TEXTURES}.items():
        assert {getattr(item, name) for item in objects} == set(values)
    assert all(item.size == "large" for item in objects if item.texture != "plain" or item.digit)
    assert {item.digit for item in objects} == {None, *"0123456789"}


def test_no_two_things_share_a_patch(scenes):
    layouts = [drawn.layout for drawn in scenes] + [layout_of(7, index, VARIED_CLUTTER) for index in range(20)]
    for layout in layouts:
        patches = [list(item.cover()) for item in layout.objects]
        patches += [item.patches() for item in (*layout.signs, *layout.distractors)]
        everything = [patch for of in patches for patch in of]
        assert len(everything) == len(set(everything))
        assert min(everything) >= 0 and max(everything) < GRID * GRID


def test_the_patches_of_an_object_are_those_whose_pixels_it_changes(scenes):
    for drawn in scenes[:6]:
        for item in drawn.layout.objects:
            others = tuple(other for other in drawn.layout.objects if other is not item)
            share = changed_patches(drawn.layout, Layout(others, drawn.layout.signs, drawn.layout.distractors))
            assert set(np.flatnonzero(share)) <= set(item.cover())
            assert set(item.patches()) == {patch for patch, cover in item.cover().items() if cover >= MIN_SHARE}
            if not item.digit:
                np.testing.assert_allclose(share[list(item.cover())], list(item.cover().values()), atol=0.01)


def test_a_sign_changes_all_of_its_three_patches_and_no_other(scenes):
    for drawn in scenes[:10]:
        layout = drawn.layout
        share = changed_patches(layout, Layout(layout.objects, (), layout.distractors))
        assert set(np.flatnonzero(share)) == {patch for sign in layout.signs for patch in sign.patches()}


def test_neighbouring_patches_of_confetti_differ_in_color():
    layout = next(drawn for drawn in (layout_of(1, n, CLUTTER) for n in range(9)) if drawn.distractors)
    confetti = [item for item in layout.distractors if item.kind == "confetti"]
    image = pixels(Layout((), (), layout.distractors))
    for item in confetti:
        corners = [tuple(image[patch // GRID * PATCH_SIZE, patch % GRID * PATCH_SIZE]) for patch in item.patches()]
        assert len(set(corners)) == len(corners)
        assert all(max(corner) == 255 and min(corner) == 0 for corner in corners)


def test_clutter_changes_neither_objects_nor_signs():
    few, many = layout_of(2, 3, CLUTTER), layout_of(2, 3, VARIED_CLUTTER)
    assert (few.objects, few.signs) == (many.objects, many.signs)


def test_glyphs_are_bitmaps_of_one_size_and_differ_in_several_dots():
    drawn = glyphs()
    assert tuple(drawn) == GLYPHS
    assert {glyph.shape for glyph in drawn.values()} == {(14, 10)}
    for first, second in combinations(drawn.values(), 2):
        assert (first != second).sum() >= 2 * 4


def test_no_two_words_have_the_same_letters_and_many_differ_in_one():
    assert len({"".join(sorted(word)) for word in WORDS}) == len(WORDS) == 16
    assert set("".join(WORDS)) == set(LETTERS)
    near = sum(sum(a != b for a, b in zip(*pair, strict=True)) == 1 for pair in combinations(WORDS, 2))
    assert near >= len(WORDS)
