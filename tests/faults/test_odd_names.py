"""Names are data, never paths out of the image root: fault case 24. Also questions that are no questions."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from configs.experiment import DataSection
from configs.load import load
from stage1_extract.extract import extract
from store.errors import InvalidQuestions
from store.questions.question import read_questions
from store.questions.splits import select
from store.reading.reader import FeatureStore
from tests.faults.runs import config_file, invoke, run, snapshot
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_images

CLIMBING = [
    "../../etc/passwd",
    "../data/../../secret.png",
    "a/../../secret.png",
    "/etc/passwd",
    "/dev/stdin",
    "..",
    ".",
]
STRANGE = [
    "a\0b.png",
    "nul\0",
    "x" * 300 + ".png",
    "deep/" * 700 + "x.png",
    "~/x.png",
    "$HOME/x.png",
    "`touch marker`.png",
]
ABSENT = ["a\nb.png: missing_file\nimage_000.png", "\x1b[2Jclear.png", "tab\there.png", "\u202egnp.exe", "%s%n.png"]
E_ACUTE = ("caf\u00e9.png", "cafe\u0301.png")
PRESENT = [
    *E_ACUTE,
    "case.png",
    "CASE.png",
    "two words.png",
    " leading.png",
    "line\nbreak.png",
    "semi;colon.png",
    "日本.png",
]
"""Each is a file of its own."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("model") / "checkpoint")


def ask_about(folder: Path, names: list[str]) -> None:
    rows = [
        {
            "question_id": f"q\n{n}" if n == 1 else str(n),
            "image": name,
            "question": "is it red ?",
            "answers": ["yes"],
            "split": "test",
        }
        for n, name in enumerate(names)
    ]
    path = folder / "data" / "questions.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A run over every odd name, beside a secret that none of them may reach."""
    folder = tmp_path_factory.mktemp("names") / "home"
    images = folder / "data" / "images"
    for number, made in enumerate(tiny_images(images, len(PRESENT), seed=1)):
        (images / made).rename(images / PRESENT[number])
    tiny_images(folder, 1, seed=2)
    (folder / "image_000.png").rename(folder.parent / "secret.png")
    outside = snapshot(folder.parent)
    names = [*CLIMBING, *STRANGE, *ABSENT]
    ask_about(folder, [*names[:9], *PRESENT, *names[9:]])
    config = config_file(folder, checkpoint, prune={"methods": [{"name": "keep_all"}]})
    done = run("extract", "--config", config, "--max-failures", len(names), "--json", cwd=folder)
    return folder, config, json.loads(done.stdout), done, outside


def test_the_file_system_of_these_tests_tells_twins_apart(made):
    assert unicodedata.normalize("NFC", E_ACUTE[1]) == E_ACUTE[0] and E_ACUTE[0] != E_ACUTE[1]
    assert len(list((made[0] / "data" / "images").iterdir())) == len(PRESENT)


def test_every_name_that_is_a_file_under_the_root_has_its_own_row_and_features(made):
    folder, _, done, _, _ = made
    assert done["tower_images"] == len(PRESENT)
    store = FeatureStore.open(folder / "run" / "store")
    rows = [store.ids.row_of_name(name) for name in PRESENT]
    assert None not in rows and len(set(rows)) == len(PRESENT)
    features = store.gather("raw", rows)
    assert len(np.unique(features.reshape(len(rows), -1), axis=0)) == len(PRESENT)


def test_every_other_name_is_kept_as_it_is_with_a_reason(made):
    folder, _, done, _, _ = made
    store = FeatureStore.open(folder / "run" / "store")
    reason = {name: store.failed()[store.ids.row_of_name(name)] for name in [*CLIMBING, *STRANGE, *ABSENT]}
    assert all(reason[name] == "outside_image_root" for name in CLIMBING if name != ".")
    assert reason["."] == "not_a_regular_file"
    assert {reason[name] for name in ABSENT} == {"missing_file"}
    assert {reason[name] for name in STRANGE} <= {"outside_image_root", "unreadable", "missing_file"}
    assert len(done["failures"]) == len(reason)


def test_nothing_is_read_or_written_outside_the_root_and_the_run(made):
    folder, _, _, _, before = made
    after = snapshot(folder.parent)
    added = {name for name in after if name not in before}
    assert all(name.startswith(("home/run", "home/trial.yaml", "home/data/questions.jsonl")) for name in added), added
    assert {name: after[name] for name in before} == before


def test_no_control_character_of_a_name_reaches_the_terminal(made, capsys):
    folder, config, _, done, _ = made
    invoke(capsys, "extract", "--config", config, "--max-failures", len(CLIMBING + STRANGE + ABSENT))
    refused = invoke(capsys, "extract", "--config", config, "--run-dir", folder / "run2", expect=3)
    for said in (done.stderr, refused):
        assert "\x1b[2J" not in said and "\nimage_000.png" not in said
    inspected = run("inspect", folder / "run" / "store", cwd=folder).stdout
    assert "\x1b[2J" not in inspected and "\0" not in inspected


def test_questions_about_such_names_are_answered_or_excluded_and_never_mixed_up(made):
    folder, config, _, _, _ = made
    run("eval", "--config", config, "--data.test", 100, cwd=folder)
    summary = json.loads((folder / "run" / "eval" / "summary.json").read_text())
    assert summary["n_questions"] == len(PRESENT)
    assert len(summary["excluded"]) == len(CLIMBING + STRANGE + ABSENT)
    predictions = sorted((folder / "run" / "eval" / "predictions").iterdir())
    assert all(path.parent == folder / "run" / "eval" / "predictions" for path in predictions)


def test_names_that_are_no_text_and_names_longer_than_any_path_are_refused_by_their_line(tmp_path):
    lines = [
        '{"question_id": "a", "image": "x.png", "question": "?"}',
        '{"question_id": "b", "image": "\\ud800.png", "question": "?"}',
        json.dumps({"question_id": "c", "image": "x" * 4097, "question": "?"}),
        json.dumps({"question_id": "d", "image": "", "question": "?"}),
        json.dumps({"question_id": "e", "image": None, "question": "?"}),
        json.dumps({"question_id": "f", "image": ["../x"], "question": "?"}),
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with pytest.raises(InvalidQuestions) as caught:
        read_questions(DataSection(images=tmp_path, questions=tmp_path / "q.jsonl"))
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "5 rows cannot be used" in message and len(message) < 1500
    assert all(f"line {number}: image" in message for number in (2, 3, 4, 5, 6))
    assert message.isprintable() or message.replace("\n", "").isprintable()


def test_a_name_of_4096_characters_is_data_like_any_other(tmp_path):
    row = {"question_id": "a", "image": "x" * 4096, "question": "?"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    data = DataSection(images=tmp_path, questions=tmp_path / "q.jsonl")
    assert select(read_questions(data), data, "test")[0].image == "x" * 4096


HOSTILE = {
    "100,000 lists in each other": "[" * 100_000,
    "a line of them": '{"question_id": ' + "[" * 100_000,
    "a number of 5,000 digits": '{"question_id": ' + "9" * 5000 + "}",
    "a list with such a number": "[" + "9" * 5000 + "]",
    "not utf-8": b'{"question_id": "\xff"}',
    "a null character": b"\0\0\0\0",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.timeout(20)
def test_a_file_of_questions_that_is_none_is_an_error_with_its_place(tmp_path, content):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidQuestions, match=r"1 row cannot be used.*\n  (line 1|the file|byte \d+): ") as caught:
        read_questions(DataSection(images=tmp_path, questions=path))
    assert len(str(caught.value)) < 1000


def test_file_names_of_a_folder_that_are_no_utf_8_are_stored_and_shown(tmp_path, checkpoint, capsys):
    images = tmp_path / "data" / "images"
    tiny_images(images, 1)
    os.rename(images / "image_000.png", os.fsencode(images) + b"/\xff\xfe.png")  # noqa: PTH104 (bytes)
    (images / "empty\udcff.png").write_bytes(b"")
    config = config_file(tmp_path, checkpoint, data={"questions": None})
    experiment = load(config, {"extract.max_failures": 1})
    assert extract(experiment, overwrite=False)["tower_images"] == 1
    assert FeatureStore.open(experiment.store_path).ids.row_of_name("\udcff\udcfe.png") is not None
    for shown in (
        run("extract", "--config", config, "--max-failures", 1, cwd=tmp_path).stdout,
        invoke(capsys, "extract", "--config", config, "--run-dir", tmp_path / "other", expect=3),
        run("inspect", experiment.store_path, cwd=tmp_path).stdout,
    ):
        assert "empty\\xff.png" in shown
