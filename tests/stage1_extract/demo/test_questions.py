"""Questions: answered again from the scene by other code, and balanced."""

from collections import Counter

import numpy as np
import pytest

from stage1_extract.demo.questions import questions
from stage1_extract.demo.scenes import GRID, IMAGE_SIZE, scene

MANY = 250
SINGULAR = {"crosses": "cross"}


@pytest.fixture(scope="module")
def asked():
    scenes = [scene(0, index) for index in range(MANY)]
    return [(drawn, question) for index, drawn in enumerate(scenes) for question in questions(drawn, 0, index)]


def answer(objects, kind: str, text: str) -> str:
    """The answer, from the words of the question and the objects of the scene alone."""
    words = text.rstrip("?").split()
    match kind:
        case "color":
            (item,) = [item for item in objects if item.shape == words[-1]]
            return item.color
        case "shape":
            (item,) = [item for item in objects if item.color == words[-2]]
            return item.shape
        case "exists":
            return "yes" if any([item.color, item.shape] == words[-2:] for item in objects) else "no"
        case "count":
            plural = words[2]
            return str(sum(item.shape == SINGULAR.get(plural, plural[:-1]) for item in objects))
        case _:
            (item,) = [item for item in objects if [item.color, item.shape] == words[2:4]]
            return "left" if item.x < IMAGE_SIZE / 2 else "right"


def about(objects, kind: str, text: str) -> list:
    """The objects of the scene that a question is about."""
    words = text.rstrip("?").split()
    return [
        item
        for item in objects
        if {"color": item.shape == words[-1], "shape": item.color == words[-2]}.get(kind)
        or (kind == "exists" and [item.color, item.shape] == words[-2:])
        or (kind == "count" and item.shape == SINGULAR.get(words[2], words[2][:-1]))
        or (kind == "side" and [item.color, item.shape] == words[2:4])
    ]


def test_every_scene_is_asked_one_question_of_each_kind(asked):
    kinds = [question.kind for _, question in asked]
    assert kinds == ["color", "shape", "exists", "count", "side"] * MANY


def test_every_answer_follows_from_the_objects_and_is_among_the_choices(asked):
    for drawn, question in asked:
        assert question.answer == answer(drawn.objects, question.kind, question.text), question
        assert question.answer in question.choices


def test_the_patches_are_those_of_the_objects_asked_about_and_none_where_there_is_no_such_object(asked):
    for drawn, question in asked:
        items = about(drawn.objects, question.kind, question.text)
        assert question.patches == tuple(sorted({patch for item in items for patch in item.patches()})), question
        assert all(0 <= patch < GRID * GRID for patch in question.patches)
        assert bool(question.patches) == (question.answer not in ("no", "0"))


def test_an_absent_object_shares_its_color_or_its_shape_with_one_that_is_there_most_of_the_time(asked):
    near = [
        any(item.color in question.text or item.shape in question.text for item in drawn.objects)
        for drawn, question in asked
        if question.answer == "no"
    ]
    assert np.mean(near) > 0.8


def test_without_the_image_at_most_half_of_the_answers_can_be_guessed(asked):
    best = []
    for kind in ("color", "shape", "exists", "count", "side"):
        answers = Counter(question.answer for _, question in asked if question.kind == kind)
        best.append(answers.most_common(1)[0][1] / answers.total())
    assert np.mean(best) <= 0.5
    assert max(best) <= 0.6


def test_questions_are_a_function_of_seed_and_index():
    drawn = scene(0, 7)
    assert questions(drawn, 0, 7) == questions(drawn, 0, 7)
    assert questions(drawn, 0, 7) != questions(drawn, 1, 7)
