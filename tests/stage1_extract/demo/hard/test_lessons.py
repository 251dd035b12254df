"""What the tower and the language models of the harder benchmark learn from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import CLIPVisionModel

from stage1_extract.demo.hard.labels import CLASSES, THINGS, dense_labels, things
from stage1_extract.demo.hard.language_lessons import (
    PATCHES,
    deepened,
    language_lesson,
    layout_to_learn,
    new_reader,
    random_patches,
)
from stage1_extract.demo.hard.recipe import CPU, RECIPES
from stage1_extract.demo.hard.scenes import CLUTTER, VARIED_CLUTTER, layout_of
from stage1_extract.demo.hard.tower_lessons import encode_windows, tower_lesson
from stage1_extract.demo.language_lessons import answer_logits
from stage1_extract.demo.scenes import COLORS, GRID
from stage1_extract.demo.teaching import IGNORED, normalised
from stage1_extract.demo.tower_lessons import FEATURE_LAYER, tower_config

SMALL = replace(CPU, tower_width=16, language_width=16, heads=2, layers=2, deep_layers=5, window_scenes=1, scenes=6)


def equal(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return all(equal(first[name], second[name]) for name in first)
    return all(equal(vars(first)[name], vars(second)[name]) for name in vars(first))


def test_every_patch_of_a_scene_has_the_labels_of_the_thing_that_lies_on_it():
    layout = layout_of(0, 1, VARIED_CLUTTER)
    labels, weight = dense_labels(layout)
    flat = {name: label.ravel() for name, label in labels.items()}
    assert flat.keys() == CLASSES.keys()
    colors, seen = list(COLORS), np.zeros(PATCHES, bool)
    for item in layout.objects:
        patches = [patch for patch, share in item.cover().items() if share >= 0.15]
        assert set(flat["color"][patches]) == {colors.index(item.color) + 1}
        assert (flat["glyph"][item.middle] > 0) == bool(item.digit)
        assert flat["middle"][list(item.cover())].sum() == 1
        seen[list(item.cover())] = True
    for sign in layout.signs:
        assert (flat["glyph"][sign.patches()] > len("0123456789")).all()
        seen[sign.patches()] = True
    for item in layout.distractors:
        assert len(set(flat["distractor"][item.patches()])) == 1
        assert not weight.ravel()[item.patches()].any()
    assert not flat["color"][~seen].any() and not weight.ravel()[~seen].any()
    assert (weight.ravel()[flat["color"] > 0] > 0).all()
    assert (flat["row"] * GRID + flat["column"] == np.arange(PATCHES)).all()
    for name, count in CLASSES.items():
        known = flat[name][flat[name] != IGNORED]
        assert known.min() >= 0 and known.max() < count


def test_distractors_are_among_the_things_that_the_cls_row_is_asked_for():
    layout = layout_of(0, 1, CLUTTER)
    there = things(layout)
    assert len(there) == len(layout.objects) + len(layout.signs) + len(layout.distractors)
    assert all(0 <= thing < THINGS for thing, _ in there)


@pytest.mark.parametrize("step", [3, SMALL.window_steps + 1])
def test_a_lesson_of_the_tower_is_a_function_of_its_step(step):
    assert equal(tower_lesson(SMALL, step), tower_lesson(SMALL, step))
    assert not equal(tower_lesson(SMALL, step).pixels, tower_lesson(SMALL, step + 1).pixels)


def test_a_window_has_the_labels_and_the_positions_of_its_patches():
    lesson = tower_lesson(SMALL, 1)
    patches = SMALL.window**2
    assert lesson.pixels.shape == (2, SMALL.window * 14, SMALL.window * 14, 3)
    assert lesson.index.shape == (2, 1 + patches) and not lesson.index[:, 0].any()
    places = lesson.index[:, 1:] - 1
    assert torch.equal(lesson.labels["column"], places % GRID) and torch.equal(lesson.labels["row"], places // GRID)


@torch.no_grad()
def test_a_window_as_large_as_the_image_is_encoded_as_stock_clip_encodes_the_image():
    torch.manual_seed(0)
    tower = CLIPVisionModel(tower_config(16, 4, 2)).eval()
    lesson = tower_lesson(SMALL, SMALL.window_steps + 1)
    pixels = normalised(lesson.pixels)
    stock = tower(pixels, output_hidden_states=True).hidden_states[FEATURE_LAYER]
    torch.testing.assert_close(encode_windows(tower, pixels, lesson.index), stock, atol=1e-5, rtol=1e-5)


def test_patches_are_kept_whatever_they_show_in_ascending_order_and_all_equally_often():
    rng = np.random.default_rng(0)
    drawn = [random_patches(64, rng) for _ in range(600)]
    assert all(len(kept) == 64 and (np.diff(kept) > 0).all() for kept in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=PATCHES) / len(drawn)
    assert times.min() > 0.04 and times.max() < 0.2 and abs(times.mean() - 64 / PATCHES) < 1e-9
    assert (random_patches(PATCHES, rng) == np.arange(PATCHES)).all()


def test_a_lesson_of_the_language_model_is_a_function_of_its_step_and_asks_about_what_is_kept():
    lesson = language_lesson(SMALL, "language", 100, 5)
    assert equal(lesson, language_lesson(SMALL, "language", 100, 5))
    assert not equal(lesson.scenes, language_lesson(SMALL, "deep-language", 100, 5).scenes)
    assert lesson.kept.shape[0] == SMALL.language_scenes and lesson.packed.ids.shape[0] == SMALL.language_scenes
    shown = layout_to_learn(SMALL.seed, int(lesson.scenes[0])).shown_by(set(lesson.kept[0].tolist()))
    assert len(shown.objects) <= 12


@torch.no_grad()
def test_a_deeper_model_answers_as_the_one_it_begins_from_and_keeps_its_projector():
    first = new_reader(SMALL, SMALL.layers)
    second = deepened(SMALL, first)
    lesson = language_lesson(SMALL, "language", 100, 1)
    raw = torch.randn(SMALL.language_scenes, PATCHES, SMALL.tower_width)
    (ours, _), (theirs, _) = (answer_logits(reader, raw, lesson.kept, lesson.packed) for reader in (second, first))
    assert len(second.language.model.layers) == 5
    assert torch.equal(ours, theirs)
    assert torch.equal(second.linear_1.weight, first.linear_1.weight)
    assert not any(weight.requires_grad for weight in [*second.linear_1.parameters(), *second.linear_2.parameters()])


def test_the_recipes_learn_from_other_scenes_than_the_benchmarks_and_measure_on_others_still():
    for recipe in RECIPES.values():
        assert len({0, recipe.seed, recipe.held_out_seed}) == 3
        assert sum(recipe.budget_shares) == pytest.approx(1) and len(recipe.budget_shares) == len(recipe.budgets)
