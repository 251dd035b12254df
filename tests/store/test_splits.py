"""Which questions an experiment takes: splits that rows name, and splits that are dealt out by image."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from configs.experiment import DataSection
from store.errors import InvalidQuestions
from store.questions.question import Question
from store.questions.splits import account, answer_is_a_choice, divided, select, used
from tests.store.stores import quick

SPLITS = ("train", "val", "test")


def questions_of(images, split=None):
    return [
        Question(question_id=f"q{number}", image=image, question="?", split=split)
        for number, image in enumerate(images)
    ]


def limited(train=None, val=None, test=None):
    return DataSection(images=Path("images"), train=train, val=val, test=test)


def test_splits_that_rows_name_are_taken_in_file_order_up_to_the_limit():
    questions = [q for split in SPLITS for q in questions_of("abc", split)]
    questions = [q.model_copy(update={"question_id": f"{n}"}) for n, q in enumerate(questions)]
    assert [q.question_id for q in select(questions, limited(train=2), "train")] == ["0", "1"]
    assert [q.question_id for q in select(questions, limited(), "val")] == ["3", "4", "5"]
    assert [q.question_id for q in select(questions, limited(test=9), "test")] == ["6", "7", "8"]


def test_a_split_named_in_some_rows_only_is_refused():
    mixed = [*questions_of("ab"), *questions_of("c", "val")]
    with pytest.raises(InvalidQuestions, match="2 of 3 questions name no split"):
        select(mixed, limited(), "train")


limits = st.one_of(st.none(), st.integers(1, 8))
many = st.lists(st.sampled_from([f"{n}.png" for n in range(9)]), max_size=30)
three = st.tuples(limits, limits, limits)


def dealt_before(questions, sizes):
    """How earlier versions dealt images out: to test, then val, then train, until each has its number of questions."""
    by_image = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    dealt = {"test": [], "val": [], "train": []}
    remaining = list(dealt)
    for image in sorted(by_image, key=lambda name: hashlib.sha256(name.encode()).digest()):
        while remaining and len(dealt[remaining[0]]) >= sizes[remaining[0]]:
            remaining.pop(0)
        if remaining:
            dealt[remaining[0]] += by_image[image]
    return {split: dealt[split][: sizes[split]] for split in dealt}


@quick
@given(
    images=st.lists(st.sampled_from([f"{n}.png" for n in range(40)]), min_size=24, max_size=60),
    sizes=st.tuples(*[st.integers(1, 8)] * 3),
)
def test_with_three_numbers_and_enough_questions_every_split_has_the_questions_it_had_before(images, sizes):
    questions = questions_of(images)
    before = dealt_before(questions, dict(zip(SPLITS, sizes, strict=True)))
    assume(all(before.values()))  # an empty split was a fault
    assert {split: select(questions, limited(*sizes), split) for split in SPLITS} == before


def test_the_numbers_of_the_demos_configs_deal_as_they_always_did():
    questions = questions_of([f"{n % 500}.png" for n in range(1500)])
    before = dealt_before(questions, {"train": 600, "val": 200, "test": 200})
    assert {split: select(questions, limited(600, 200, 200), split) for split in SPLITS} == before
    assert select(questions, limited(None, 200, 200), "test") == before["test"]


@quick
@given(images=many, sizes=three, shuffled=st.randoms(use_true_random=False))
def test_dealt_splits_share_no_image_keep_their_limits_and_ignore_the_order_of_the_images(images, sizes, shuffled):
    section = limited(*sizes)
    questions = questions_of(images)
    dealt = {split: select(questions, section, split) for split in SPLITS}
    shown = {split: {q.image for q in dealt[split]} for split in SPLITS}
    assert not (shown["train"] & shown["val"] or shown["train"] & shown["test"] or shown["val"] & shown["test"])
    assert all(limit is None or len(dealt[split]) <= limit for split, limit in zip(SPLITS, sizes, strict=True))
    groups = {image: [q for q in questions if q.image == image] for image in dict.fromkeys(images)}
    order = list(groups)
    shuffled.shuffle(order)
    reordered = [q for image in order for q in groups[image]]
    assert all(select(reordered, section, split) == dealt[split] for split in SPLITS)


@quick
@given(images=many, sizes=three)
def test_no_split_is_empty_where_there_are_three_images_and_no_question_is_in_none(images, sizes):
    questions = questions_of(images)
    parts = divided(questions, limited(*sizes))
    assert sorted(q.question_id for split in SPLITS for q in parts[split]) == sorted(q.question_id for q in questions)
    assert sum(bool(parts[split]) for split in SPLITS) == min(3, len(set(images)))


@pytest.mark.parametrize(
    ("questions", "sizes", "expected"),
    [
        (1500, (None, None, None), (900, 300, 300)),
        (40, (600, 200, 200), (24, 8, 8)),  # in proportion, as there are fewer than 1,000
        (100, (10, 30, 160), (5, 15, 80)),
        (1500, (None, 200, 200), (1100, 200, 200)),  # what is not given shares the rest
        (1000, (None, None, 200), (600, 200, 200)),
        (100, (None, None, 200), (60, 20, 20)),  # or has its part of all, where there are too few
        (1500, (600, 200, 200), (1100, 200, 200)),  # the last split has the rest, and its number is a limit
        (3, (600, 200, 200), (1, 1, 1)),
    ],
)
def test_images_with_one_question_each_are_dealt_by_the_numbers_or_in_proportion(questions, sizes, expected):
    parts = divided(questions_of([f"{n}.png" for n in range(questions)]), limited(*sizes))
    assert tuple(len(parts[split]) for split in SPLITS) == expected


def test_few_images_with_many_questions_reach_every_split():
    """The 1,500 questions about 30 images of which 200 were left, about 4."""
    questions = questions_of([f"{n % 30}.png" for n in range(1500)])
    assert [len(divided(questions, limited())[split]) for split in SPLITS] == [900, 300, 300]
    few = questions_of([f"{n % 3}.png" for n in range(1500)])
    assert [len(select(few, limited(600, 200, 200), split)) for split in SPLITS] == [500, 200, 200]


@quick
@given(images=st.lists(st.sampled_from("abcdefgh"), max_size=30), shuffled=st.randoms(use_true_random=False))
def test_images_land_in_the_same_split_however_the_file_is_sorted(images, shuffled):
    questions = questions_of(images)
    reordered = shuffled.sample(questions, len(questions))
    section = limited(train=None, val=3, test=4)
    for split in SPLITS:
        assert {q.image for q in select(reordered, section, split)} == {
            q.image for q in select(questions, section, split)
        }


@quick
@given(
    images=st.lists(st.sampled_from("abcdefgh"), max_size=25),
    sizes=st.tuples(limits, limits, limits),
    named=st.booleans(),
)
def test_used_is_what_the_splits_select_in_file_order(images, sizes, named):
    section = limited(*sizes)
    questions = [
        q.model_copy(update={"split": SPLITS[n % 3]}) if named else q for n, q in enumerate(questions_of(images))
    ]
    selected = {q.question_id for split in SPLITS for q in select(questions, section, split)}
    assert used(questions, section) == [q for q in questions if q.question_id in selected]


def test_no_questions_make_empty_splits():
    assert [select([], limited(), split) for split in SPLITS] == [[], [], []] and used([], limited()) == []


@pytest.mark.parametrize(
    ("sizes", "splits", "limit", "expected"),
    [
        ((None, None, None), SPLITS, None, "1,500 of 1,500 questions are taken, about 30 of 30 images: all 900 in train; all "
         "300 in val; all 300 in test; they name no split, so their images are dealt out by the hashes of their names, to "
         "train, val and test 60/20/20"),
        ((600, 200, 200), SPLITS, None, "1,000 of 1,500 questions are taken, about 20 of 30 images: 600 of 1,100 in train, as "
         "data.train is 600; all 200 in val; all 200 in test; they name no split, so their images are dealt out by the hashes "
         "of their names, by data.train, data.val and data.test"),
        ((None, None, None), ("test",), 20, "20 of 1,500 questions are taken, about 1 of 30 images: 20 of 300 in test, as "
         "--limit is 20; 900 in train and 300 in val are not asked here; "),
    ],
)  # fmt: skip
def test_the_account_says_how_many_of_how_many_and_why(sizes, splits, limit, expected):
    questions = questions_of([f"{n % 30}.png" for n in range(1500)])
    assert account(questions, limited(*sizes), splits, limit).startswith(expected)


def test_numbers_that_cannot_be_had_are_said_to_be_proportions():
    questions = questions_of("abcdef")
    assert "in proportion to data.train, data.val and data.test, for which there are too few" in account(
        questions, limited(600, 200, 200), SPLITS
    )
    assert "by data.test, the others by their part of train, val and test 60/20/20" in account(
        questions, limited(test=2), SPLITS
    )


def test_of_questions_that_name_their_split_no_dealing_is_told():
    told = account(questions_of("abc", "val"), limited(val=2), SPLITS)
    assert (
        told
        == "2 of 3 questions are taken, about 2 of 3 images: none are in train; 2 of 3 in val, as data.val is 2; none are in test"
    )


@pytest.mark.parametrize(
    ("answers", "choices", "among"),
    [
        (["red"], ["red", "blue"], True), (["Red."], ["red", "blue"], True), (["rde"], ["red", "blue"], False),
        (["a cat", "cat"], ["cat", "dog"], True), (["red"], None, True), ([], ["red"], True), (["A"], ["red", "blue"], False),
    ],
)  # fmt: skip
def test_an_answer_is_a_choice_if_any_is_after_normalisation(answers, choices, among):
    question = Question(question_id="q", image="a", question="?", answers=answers, choices=choices)
    assert answer_is_a_choice(question) is among
