"""Reading questions in two formats, and dealing them out to splits that share no image."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.experiment import DataSection
from store.errors import DataMissing, InvalidQuestions
from store.questions import Question, image_names, read_questions, select, used
from tests.store.stores import quick

SPLITS = ("train", "val", "test")


def row(number, **fields):
    return {"question_id": f"q{number}", "image": f"{number}.png", "question": "what is it ?"} | fields


def data(folder: Path, content, **limits) -> DataSection:
    """`content` as questions: text, rows of a JSONL, or a whole JSON document in a tuple."""
    path = folder / "questions.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif isinstance(content, tuple):
        path.write_text(json.dumps(content[0]))
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in content))
    return DataSection(images=folder / "images", questions=path, **limits)


def questions_of(images, split=None):
    return [
        Question(question_id=f"q{number}", image=image, question="?", split=split)
        for number, image in enumerate(images)
    ]


def limited(train=None, val=None, test=None):
    return DataSection(images=Path("images"), train=train, val=val, test=test)


def test_a_line_becomes_a_question_with_all_its_fields(tmp_path):
    full = row(
        1,
        answers=["a cat", "cat"],
        choices=["cat", "dog"],
        kind="animal",
        split="val",
        patches=[0, 5],
        region=[[0, 0.25, 0.5, 1]],
        source="ignored",
    )
    first, second = read_questions(data(tmp_path, [full, row(2)]))
    assert first == Question(
        question_id="q1", image="1.png", question="what is it ?", answers=("a cat", "cat"), choices=("cat", "dog"),
        kind="animal", split="val", patches=(0, 5),
        region=((0, 0.25, 0.5, 1),),
    )  # fmt: skip
    assert second.region is None
    assert (second.answers, second.choices, second.kind, second.split, second.patches) == ((), None, None, None, None)


def test_numbers_are_taken_as_text_and_empty_lines_left_out(tmp_path):
    content = "\n" + json.dumps(row(1, question_id=7, answers=[3, 2.5])) + "\n\n  \n"
    (question,) = read_questions(data(tmp_path, content))
    assert question.question_id == "7" and question.answers == ("3", "2.5")


def test_the_order_of_the_file_is_kept(tmp_path):
    numbers = [5, 3, 9, 1]
    assert [q.image for q in read_questions(data(tmp_path, [row(n) for n in numbers]))] == [f"{n}.png" for n in numbers]


def test_every_unusable_row_is_listed_with_its_line_field_and_value(tmp_path):
    lines = [
        json.dumps(row(1)),
        "{not json",
        json.dumps({"question_id": "q3", "question": "?"}),
        json.dumps(row(4, split="dev")),
        json.dumps(row(5, patches=[-1])),
        json.dumps(["a", "list"]),
        json.dumps(row(7, image="")),
        json.dumps(row(1)),
    ]
    source = data(tmp_path, "\n".join(lines))
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(source)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    for expected in (
        f"{source.questions}: 7 rows cannot be used", "line 2: not JSON", "line 3: image: Field required",
        "line 4: split: ", "'dev'", "line 5: patches.0: ", "-1", "line 6: row: ", "line 7: image: ",
        "question_id 'q1' is given more than once",
    ):  # fmt: skip
        assert expected in message
    assert "line 1:" not in message


@pytest.mark.parametrize("box", [[0.5, 0, 0.5, 1], [0, 1, 1, 0.5], [0, 0, 1, 336], [-0.1, 0, 1, 1], [0, 0, 1]])
def test_a_box_has_four_fractions_in_order(tmp_path, box):
    with pytest.raises(InvalidQuestions, match=r"line 1: region\.0"):
        read_questions(data(tmp_path, [row(1, region=[box])]))


def test_of_very_many_problems_the_first_are_listed_and_the_rest_counted(tmp_path):
    with pytest.raises(InvalidQuestions, match="50 rows cannot be used") as caught:
        read_questions(data(tmp_path, "{\n" * 50))
    assert str(caught.value).count("not JSON") == 20 and "and 30 more" in str(caught.value)


def test_a_very_long_value_does_not_fill_the_message(tmp_path):
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(data(tmp_path, [row(1, image="x" * 100_000)]))
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_said_with_its_path(tmp_path):
    with pytest.raises(DataMissing, match=f"{tmp_path}/none.jsonl") as caught:
        read_questions(DataSection(images=tmp_path, questions=tmp_path / "none.jsonl"))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_a_question_may_hold_any_character_that_json_allows_in_a_line(tmp_path, character):
    text = json.dumps(row(1, question=f"what{character}is it ?"), ensure_ascii=False)
    (question,) = read_questions(data(tmp_path, text + "\n"))
    assert question.question == f"what{character}is it ?"


@pytest.mark.parametrize("content", [[row(1), row(2)], ([{"id": "a", "image": "1.png", "conversations": []}],)])
def test_lines_may_end_as_windows_ends_them(tmp_path, content):
    source = data(tmp_path, content)
    expected = read_questions(source)
    source.questions.write_bytes(source.questions.read_bytes().replace(b"\n", b"\r\n"))
    assert read_questions(source) == expected


@pytest.mark.parametrize("content", ["[{", "[1, 2,]", '[{"image": "a.png"}', b'{"question_id": "\xff\xfe"}\n'])
def test_a_file_that_cannot_be_read_at_all_is_an_error_of_ours(tmp_path, content):
    source = data(tmp_path, content)
    with pytest.raises(InvalidQuestions, match=str(source.questions)):
        read_questions(source)


def conversation(number, image="1.png", turns=1, **fields):
    said = []
    for turn in range(turns):
        said += [
            {"from": "human", "value": f"<image>\nquestion {turn}" if turn == 0 else f"question {turn}"},
            {"from": "gpt", "value": f"answer {turn}"},
        ]
    return {"id": f"c{number}", "image": image, "conversations": said} | fields


def test_every_human_turn_of_a_conversation_is_a_question_without_the_placeholder(tmp_path):
    questions = read_questions(data(tmp_path, ([conversation(1, turns=2), conversation(2, "b.png", split="val")],)))
    assert [(q.question_id, q.image, q.question, q.answers, q.split) for q in questions] == [
        ("c1/0", "1.png", "question 0", ("answer 0",), None),
        ("c1/1", "1.png", "question 1", ("answer 1",), None),
        ("c2/0", "b.png", "question 0", ("answer 0",), "val"),
    ]


def test_a_conversation_without_an_id_is_named_by_its_place(tmp_path):
    entries = [conversation(1), conversation(2)]
    for entry in entries:
        del entry["id"]
    assert [q.question_id for q in read_questions(data(tmp_path, (entries,)))] == ["0/0", "1/0"]


def test_a_last_question_that_nobody_answered_is_left_out(tmp_path):
    entry = conversation(1, turns=2)
    entry["conversations"].pop()
    assert [q.question for q in read_questions(data(tmp_path, ([entry],)))] == ["question 0"]


def test_conversations_without_an_image_are_left_out_and_counted(tmp_path, caplog):
    text_only = {"id": "t", "conversations": conversation(1)["conversations"]}
    with caplog.at_level(logging.WARNING):
        questions = read_questions(data(tmp_path, ([text_only, conversation(1), text_only],)))
    assert [q.question_id for q in questions] == ["c1/0"]
    assert "2 conversations have no image" in caplog.text


def test_unusable_turns_are_listed_by_entry_and_turn(tmp_path):
    broken = conversation(2, turns=2)
    broken["conversations"][3].pop("value")
    with pytest.raises(InvalidQuestions, match=r"1 rows .*\n  entry 1 turn 1: answers\.0"):
        read_questions(data(tmp_path, ([conversation(1), broken],)))


@pytest.mark.parametrize("turns", ["text", 7, None, [1, 2], ["a", "b"], [None, {"value": "a"}]])
def test_conversations_that_are_none_are_listed_as_problems(tmp_path, turns):
    with pytest.raises(InvalidQuestions, match="entry 1"):
        read_questions(data(tmp_path, ([conversation(1), conversation(2, conversations=turns)],)))


def test_two_conversations_may_share_an_id_as_they_do_in_llavas_own_file(tmp_path):
    entries = [conversation(1), conversation(1, turns=2)]
    questions = read_questions(data(tmp_path, (entries,)))
    assert len({q.question_id for q in questions}) == 3


def test_images_are_named_once_in_the_order_of_their_first_question(tmp_path):
    source = data(tmp_path, [row(n, image=image) for n, image in enumerate(["b.png", "a.png", "b.png", "c/d.png"])])
    assert image_names(read_questions(source)) == ["b.png", "a.png", "c/d.png"]


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


@quick
@given(
    images=st.lists(st.sampled_from([f"{n}.png" for n in range(9)]), max_size=30),
    sizes=st.tuples(limits, limits, limits),
    shuffled=st.randoms(use_true_random=False),
)
def test_dealt_splits_share_no_image_keep_their_limits_and_ignore_the_order_of_the_images(images, sizes, shuffled):
    section = limited(*sizes)
    questions = questions_of(images)
    dealt = {split: select(questions, section, split) for split in SPLITS}
    shown = {split: {q.image for q in dealt[split]} for split in SPLITS}
    assert not (shown["train"] & shown["val"] or shown["train"] & shown["test"] or shown["val"] & shown["test"])
    for split, limit in zip(SPLITS, sizes, strict=True):
        assert limit is None or len(dealt[split]) <= limit
    # What one split has too few of, the next has none of: test is filled first, then val, then train.
    for earlier, later in (("test", "val"), ("val", "train")):
        size = dict(zip(SPLITS, sizes, strict=True))[earlier]
        if dealt[later]:
            assert size is not None and len(dealt[earlier]) == size

    groups = {image: [q for q in questions if q.image == image] for image in dict.fromkeys(images)}
    order = list(groups)
    shuffled.shuffle(order)
    reordered = [q for image in order for q in groups[image]]
    for split in SPLITS:
        assert select(reordered, section, split) == dealt[split]


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
