"""Reading questions: rows of JSONL, and what of them cannot be used."""

import json
from pathlib import Path

import pytest

from configs.experiment import DataSection
from store.errors import DataMissing, InvalidQuestions
from store.questions.question import Question, image_names, read_questions


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


def test_a_relative_path_is_said_in_full_and_the_demos_data_are_offered_in_their_own_folder_alone(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataMissing, match=rf"expected questions at {tmp_path}/mine\.jsonl, .*check data\.questions$"):
        read_questions(DataSection(images=Path("images"), questions=Path("mine.jsonl")))
    with pytest.raises(
        DataMissing, match=rf"{tmp_path}/data/demo/questions\.jsonl, .*or write the demo's with `make data`$"
    ):
        read_questions(DataSection(images=Path("data/demo/images"), questions=Path("data/demo/questions.jsonl")))


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


def test_images_are_named_once_in_the_order_of_their_first_question(tmp_path):
    source = data(tmp_path, [row(n, image=image) for n, image in enumerate(["b.png", "a.png", "b.png", "c/d.png"])])
    assert image_names(read_questions(source)) == ["b.png", "a.png", "c/d.png"]


@pytest.mark.parametrize("asked", ["a list of rows", "an indented list"])
def test_one_json_list_of_questions_is_read_as_its_rows_are(tmp_path, asked):
    rows = [row(1, answers=["red"]), row(2)]
    text = json.dumps(rows, indent=None if asked == "a list of rows" else 2)
    assert read_questions(data(tmp_path, text)) == read_questions(data(tmp_path, rows))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("anwsers", "answers"), ("answer", "answers"), ("Answers", "answers"), ("answeres", "answers"),
        ("choises", "choices"), ("choice", "choices"), ("spilt", "split"), ("splits", "split"), ("knid", "kind"),
        ("patchs", "patches"), ("regions", "region"),
    ],
)  # fmt: skip
def test_a_field_that_is_nearly_a_known_one_is_refused_by_its_line_and_name(tmp_path, given, meant):
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(data(tmp_path, [row(1), row(2, **{given: ["red"]})]))
    assert caught.value.exit_code == 2
    assert f"line 2: unknown field '{given}': did you mean '{meant}'?" in str(caught.value)


@pytest.mark.parametrize("lacking", [("question_id", "questionId"), ("image", "imgae"), ("question", "Question")])
def test_a_misspelt_field_that_every_row_must_have_is_named_too(tmp_path, lacking):
    known, given = lacking
    fields = row(1)
    fields[given] = fields.pop(known)
    with pytest.raises(InvalidQuestions, match=f"line 1: unknown field '{given}': did you mean '{known}'"):
        read_questions(data(tmp_path, [fields]))


def test_other_fields_of_a_data_set_are_no_typos(tmp_path):
    """Those of VQAv2, GQA, TextVQA, ScienceQA and POPE, beside ours."""
    others = {
        "question_type": "what", "answer_type": "other", "image_id": 7, "questions": [], "answer": "red", "label": "yes",
        "multiple_choice_answer": "red", "fullAnswer": "It is red.", "imageId": "7", "image_width": 9, "hint": "", "text": "",
        "category": "color", "set_name": "val", "choice": "A", "types": {}, "isBalanced": True, "lecture": "",
    }  # fmt: skip
    fields = row(1, answers=["red"], choices=["red", "blue"])
    assert read_questions(data(tmp_path, [fields | others])) == read_questions(data(tmp_path, [fields]))
    bare = {
        name: others[name]
        for name in ("question_type", "image_id", "answer_type", "category", "text", "label", "set_name")
    }
    assert read_questions(data(tmp_path, [row(1, **bare)])) == read_questions(data(tmp_path, [row(1)]))


@pytest.mark.parametrize(
    ("answers", "scored"),
    [([], False), ([""], False), ([" \n"], False), (["", "red"], True), (["."], True), ([0], True)],
)
def test_a_question_can_be_scored_if_any_answer_is_not_blank(tmp_path, answers, scored):
    (question,) = read_questions(data(tmp_path, [row(1, answers=answers)]))
    assert question.can_be_scored is scored


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [row(1, answers="red")],
            '1 row cannot be used, correct or remove it:\n  line 1: answers: expected a list such as ["red"]',
        ),
        ([row(1), row(2), row(1)], "question_id 'q1' is given more than once: line 1 and line 3"),
        (
            [{"id": "7", "image": "a.png"}],
            "line 1: expected a question (question_id, image, question) or a conversation",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_described_by_what_was_meant(tmp_path, rows, said):
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(data(tmp_path, rows))
    assert said in str(caught.value) and "Field required" not in str(caught.value)


def test_an_absolute_path_below_the_image_root_is_a_relative_name_and_is_noted_once(tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    rows = [row(1), *(row(n, image=f"{images}/1.png") for n in (2, 3)), row(4, image=f"{images}/../images//a/4.png")]
    rows += [row(5, image="/elsewhere/5.png"), row(6, image=str(images))]
    named = data(tmp_path, rows)
    expected = ["1.png", "1.png", "1.png", "a/4.png", "/elsewhere/5.png", str(images)]
    for root in (images, tmp_path / "link"):
        caplog.clear()
        questions = read_questions(named.model_copy(update={"images": root}))
        assert [question.image for question in questions] == expected
        assert [one.message.count("names 2 images by absolute paths below") for one in caplog.records] == [1]
