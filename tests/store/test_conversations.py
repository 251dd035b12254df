"""Conversations in LLaVA's format become questions by who speaks; what is no question with an answer is counted and named."""

import logging

import pytest

from store.errors import InvalidQuestions
from store.questions.conversations import SPEAKERS
from store.questions.question import read_questions
from tests.store.test_questions import data

HUMAN, MODEL = {"from": "human"}, {"from": "gpt"}


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
    assert "2 conversations without an image" in caplog.text


def test_unusable_turns_are_listed_by_entry_and_turn(tmp_path):
    broken = conversation(2, turns=2)
    broken["conversations"][3].pop("value")
    with pytest.raises(InvalidQuestions, match=r"1 row .*\n  entry 1 turn 1: answers\.0"):
        read_questions(data(tmp_path, ([conversation(1), broken],)))


@pytest.mark.parametrize("turns", ["text", 7, None, [1, 2], ["a", "b"], [None, {"value": "a"}]])
def test_conversations_that_are_none_are_listed_as_problems(tmp_path, turns):
    with pytest.raises(InvalidQuestions, match="entry 1"):
        read_questions(data(tmp_path, ([conversation(1), conversation(2, conversations=turns)],)))


def test_two_conversations_may_share_an_id_as_they_do_in_llavas_own_file(tmp_path):
    entries = [conversation(1), conversation(1, turns=2)]
    questions = read_questions(data(tmp_path, (entries,)))
    assert len({q.question_id for q in questions}) == 3


def talk(*turns, **fields):
    """An entry whose turns are `human: …`, `gpt: …` and the like."""
    spoken = [dict(zip(("from", "value"), turn.split(": ", 1), strict=True)) for turn in turns]
    return {"id": "c", "image": "1.png", "conversations": spoken} | fields


def asked(tmp_path, caplog, *entries):
    """What is asked and answered in the entries, and what is said of the rest."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        questions = read_questions(data(tmp_path, (list(entries),)))
    return [(one.question, *one.answers) for one in questions], caplog.text


def preprocess_v1(turns):
    """The pairs that LLaVA's own training makes of a conversation: llava/train/train.py, preprocess_v1."""
    roles = {"human": "USER", "gpt": "ASSISTANT"}
    source = turns
    if roles[source[0]["from"]] != "USER":
        source = source[1:]
    for j, sentence in enumerate(source):
        assert roles[sentence["from"]] == ("USER", "ASSISTANT")[j % 2]
    return [
        (a["value"].replace("<image>", "").strip(), b["value"]) for a, b in zip(source[::2], source[1::2], strict=False)
    ]


def test_a_greeting_is_not_asked_and_the_question_is_not_its_answer(tmp_path, caplog):
    entry = talk("gpt: Hello! How can I help?", "human: <image>\nwhat color is it ?", "gpt: red")
    pairs, said = asked(tmp_path, caplog, entry)
    assert pairs == [("what color is it ?", "red")] == preprocess_v1(entry["conversations"])
    assert (
        "left out: 1 first turn spoken by the model, not the human, which LLaVA's own training skips too (entry 0 message 0)"
        in said
    )


@pytest.mark.parametrize("begins", [("human: <image>a",), ("gpt: hi", "human: <image>a")])
@pytest.mark.parametrize("more", [(), ("human: c", "gpt: d"), ("human: c", "gpt: d", "human: e")])
def test_what_llavas_own_training_takes_of_a_conversation_is_what_is_asked(tmp_path, caplog, begins, more):
    entry = talk(*begins, "gpt: b", *more)
    pairs, said = asked(tmp_path, caplog, entry)
    assert pairs == preprocess_v1(entry["conversations"])
    assert ("human turn without an answer" in said) == (len(more) == 3)


@pytest.mark.parametrize(
    ("turns", "pairs", "left_out"),
    [
        (("human: a", "human: b", "gpt: c"), [("b", "c")], "1 human turn without an answer (entry 0 message 0)"),
        (("human: a", "gpt: b", "gpt: c"), [("a", "b")], "1 answer without a human turn before it (entry 0 message 2)"),
        (("gpt: a", "gpt: b"), [], "1 answer without a human turn before it (entry 0 message 1)"),
        (
            ("system: be brief", "human: a", "gpt: b"),
            [("a", "b")],
            "1 system prompt among the turns (entry 0 message 0)",
        ),
        (("human: a", "tool: x", "gpt: b"), [("a", "b")], "1 turn without its speaker"),
        (("human: a",), [], "1 human turn without an answer"),
        ((), [], "1 conversation without turns (entry 0)"),
    ],
)
def test_turns_that_do_not_alternate_are_paired_by_who_speaks_and_the_rest_is_named(
    tmp_path, caplog, turns, pairs, left_out
):
    found, said = asked(tmp_path, caplog, talk(*turns))
    assert found == pairs and left_out in said


@pytest.mark.parametrize("speakers", [("user", "assistant"), ("Human", "GPT"), ("user", "bot"), (" human", "chatgpt")])
@pytest.mark.parametrize("fields", [("from", "value"), ("role", "content"), ("role", "value")])
@pytest.mark.parametrize("turns", ["conversations", "messages"])
def test_other_frameworks_names_for_the_same_are_understood(tmp_path, caplog, speakers, fields, turns):
    spoken = [dict(zip(fields, turn, strict=True)) for turn in zip(speakers, ("<image>what ?", "that"), strict=True)]
    pairs, _ = asked(tmp_path, caplog, {"image": "1.png", turns: spoken})
    assert pairs == [("what ?", "that")]


def test_a_message_may_be_a_list_of_parts_as_chat_templates_take_it(tmp_path, caplog):
    entry = {
        "images": ["1.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "that"}]},
        ],
    }
    pairs, said = asked(tmp_path, caplog, entry)
    assert pairs == [("what ?", "that")] and said == ""


def test_conversations_may_be_lines_beside_rows_of_questions(tmp_path):
    row = {"question_id": "q", "image": "a.png", "question": "?"}
    source = data(tmp_path, [conversation(1), row, conversation(2, turns=2)])
    assert [q.question_id for q in read_questions(source)] == ["c1/0", "q", "c2/0", "c2/1"]


@pytest.mark.parametrize("text", ["<image>\nwhat ?", "what ?\n<image>", "what <image>?", "<image> what ?"])
def test_wherever_the_placeholder_stands_it_is_no_part_of_the_question(tmp_path, caplog, text):
    pairs, said = asked(tmp_path, caplog, talk(f"human: {text}", "gpt: that"))
    assert pairs == [("what ?", "that")] and said == ""


def test_a_conversation_without_the_placeholder_is_about_its_image_and_is_said_to_have_none(tmp_path, caplog):
    pairs, said = asked(tmp_path, caplog, talk("human: what ?", "gpt: that"))
    assert pairs == [("what ?", "that")] and "1 conversation without <image>" in said and "(entry 0)" in said


def test_questions_before_the_image_is_shown_are_left_out(tmp_path, caplog):
    pairs, said = asked(tmp_path, caplog, talk("human: hello", "gpt: hi", "human: <image>what ?", "gpt: that"))
    assert pairs == [("what ?", "that")]
    assert "1 question asked before the image is shown (entry 0 message 0)" in said


@pytest.mark.parametrize(
    "entry",
    [
        talk("human: <image>what ?", "gpt: that", image=["1.png", "2.png"]),
        talk("human: <image>\n<image>\nwhich ?", "gpt: that"),
        talk("human: <image>one ?", "gpt: that", "human: <image>another ?", "gpt: this"),
    ],
)
def test_conversations_about_several_images_are_left_out_and_named(tmp_path, caplog, entry):
    pairs, said = asked(tmp_path, caplog, entry, talk("human: <image>a", "gpt: b"))
    assert pairs == [("a", "b")] and "1 conversation about several images (entry 0)" in said


@pytest.mark.parametrize("image", [["1.png"], "1.png"])
def test_a_list_of_one_image_is_that_image(tmp_path, image):
    (question,) = read_questions(data(tmp_path, ([talk("human: <image>a", "gpt: b", image=image)],)))
    assert question.image == "1.png"


@pytest.mark.parametrize("image", [None, []])
def test_an_empty_image_is_none(tmp_path, caplog, image):
    pairs, said = asked(tmp_path, caplog, talk("human: a", "gpt: b", image=image))
    assert pairs == [] and "1 conversation without an image (entry 0)" in said


def test_of_many_places_the_first_three_are_named_and_all_are_counted(tmp_path, caplog):
    _, said = asked(tmp_path, caplog, *[talk("gpt: hi", "human: <image>a", "gpt: b", id=n) for n in range(1200)])
    assert "1,200 first turns" in said and "(entry 0 message 0, entry 1 message 0, entry 2 message 0, …)" in said


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ({"image": "1.png", "conversation": []}, "conversations"),
        ({"image": "1.png", "message": []}, "messages"),
        ({"imgae": "1.png", "conversations": []}, "image"),
        ({"image": "1.png", "spilt": "val", "conversations": []}, "split"),
        ({"image": "1.png", "conversations": [{"form": "human", "value": "a"}]}, "from"),
        ({"image": "1.png", "conversations": [{"from": "human", "vlaue": "a"}]}, "value"),
    ],
)
def test_misspelt_fields_of_conversations_are_refused_by_name(tmp_path, entry, meant):
    with pytest.raises(InvalidQuestions, match=f"entry 0.*: unknown field .*did you mean '{meant}'"):
        read_questions(data(tmp_path, ([entry],)))


def test_every_speaker_is_known_in_lower_case():
    assert all(name == name.lower().strip() for name in SPEAKERS)
