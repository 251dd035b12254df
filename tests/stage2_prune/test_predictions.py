"""Predictions on disk: resumed where an interrupted run stopped, never mixed with those of other settings."""

import json
import re
from dataclasses import asdict, replace

import click
import pytest

from stage2_prune.errors import DamagedRun, OtherRun, RunLocked
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.prediction_lines import read_lines
from stage2_prune.evaluation.predictions import PredictionFile, alone, read_cells, refuse_other_runs, write_cells
from stage2_prune.session.ask import Prediction
from store.questions.question import Question

IDENTITY = {"keep": 4, "template": "A"}


def prediction(number: int) -> Prediction:
    return Prediction(f"q{number}", "i.png", None, ("röt", "red"), "RED\n", True, "red", True, f"number {number}?")


def asked(count: int) -> list[Question]:
    return [
        Question(question_id=f"q{number}", image="i.png", question=f"number {number}?", answers=("röt", "red"))
        for number in range(count)
    ]


def opened(path, batch_size, count):
    return PredictionFile(path, Batching(batch_size), asked(count), IDENTITY)


def test_predictions_read_back_as_they_were(tmp_path):
    rows = [prediction(number) for number in range(5)]
    path = tmp_path / "predictions" / "cell.jsonl"
    file = opened(path, 2, 5)
    for start in (0, 2, 4):
        file.append(rows[start : start + 2])
    file.finish()
    assert opened(path, 2, 5).rows == rows
    assert [json.loads(line)["question_id"] for line in path.read_text().splitlines()] == [
        "q0",
        "q1",
        "q2",
        "q3",
        "q4",
    ]


def test_an_interrupted_file_is_resumed_at_its_last_whole_batch(tmp_path):
    path = tmp_path / "cell.jsonl"
    rows = [prediction(number) for number in range(6)]
    opened(path, 2, 6).append(rows[:4])
    with path.with_suffix(".jsonl.partial").open("a") as torn:
        torn.write('{"question_id": "q4", "im')
    resumed = opened(path, 2, 6)
    assert resumed.rows == rows[:4]
    resumed.append(rows[4:])
    resumed.finish()
    assert opened(path, 2, 6).rows == rows
    assert not path.with_suffix(".jsonl.partial").exists()


def test_an_odd_last_batch_counts_as_whole(tmp_path):
    path = tmp_path / "cell.jsonl"
    rows = [prediction(number) for number in range(3)]
    opened(path, 2, 3).append(rows)
    assert opened(path, 2, 3).rows == rows


def test_a_split_that_shrinks_and_grows_keeps_the_answers_that_are_there(tmp_path):
    path, rows = tmp_path / "cell.jsonl", [prediction(number) for number in range(7)]
    opened(path, 2, 5).append(rows[:5])
    fewer = opened(path, 2, 3)
    assert fewer.rows == rows[:3] and fewer.left_out == ["q3", "q4"] and not fewer.left
    fewer.finish()
    assert fewer.finished and [line.prediction for line in read_lines(path)[0]] == rows[:5]
    more = opened(path, 2, 7)
    assert more.rows == rows[:5] and [[q.question_id for q in batch] for batch in more.left] == [["q5", "q6"]]
    more.append(rows[5:])
    assert opened(path, 2, 7).rows == rows and not opened(path, 2, 7).finished
    more.finish()
    assert opened(path, 2, 7).finished and [line.prediction for line in read_lines(path)[0]] == rows


def test_of_answers_that_two_processes_wrote_the_first_counts(tmp_path):
    path = tmp_path / "cell.jsonl"
    opened(path, 2, 2).append([prediction(0), replace(prediction(0), prediction="other"), prediction(1)])
    assert opened(path, 2, 2).rows == [prediction(0), prediction(1)]


def test_an_answer_to_a_question_that_has_changed_is_refused_with_both_wordings(tmp_path):
    path = tmp_path / "cell.jsonl"
    opened(path, 2, 2).append([prediction(0), prediction(1)])
    for change, said in (
        ({"question": "what?"}, "question 'number 1\\?', now 'what\\?'"),
        ({"image": "j.png"}, "image 'i.png', now 'j.png'"),
        ({"answers": ("blue",)}, r"answers \['röt', 'red'\], now \['blue'\]"),
    ):
        changed = [asked(1)[0], asked(2)[1].model_copy(update=change)]
        with pytest.raises(OtherRun, match=f"question q1 has changed .*{said}.*--overwrite"):
            PredictionFile(path, Batching(2), changed, IDENTITY)


def flips(data):
    """Every byte changed: in a bit that takes turns, and into a space."""
    for place, byte in enumerate(data):
        for other in {byte ^ 1 << place % 8, ord(" ")} - {byte}:
            yield place, data[:place] + bytes([other]) + data[place + 1 :]


@pytest.mark.parametrize("suffix", ["", ".partial"])
def test_no_flipped_byte_of_a_predictions_file_is_taken_for_an_answer(tmp_path, suffix):
    path, rows = tmp_path / "cell.jsonl", [prediction(number) for number in range(2)]
    opened(path, 2, 2).append(rows)
    if not suffix:
        opened(path, 2, 2).finish()
    file = tmp_path / f"cell.jsonl{suffix}"
    whole = file.read_bytes()
    tried = [*flips(whole)]
    refused = 0
    for place, damaged in tried:
        path.with_suffix(".jsonl.partial").unlink(missing_ok=True)
        file.write_bytes(damaged)
        try:
            found = opened(path, 2, 2)
        except DamagedRun as error:
            refused += 1
            assert re.match(rf"line [12] of {file} is damaged \(.*\): delete this line and run eval", str(error))
        else:
            assert place >= whole.index(b"\n") + 1, "only the last line may be cut"
            assert place == len(whole) - 1 and found.rows == [], "its batch is answered anew"
            assert [q.question_id for batch in found.left for q in batch][-1] == "q1"
    assert refused >= len(tried) - 2 and len(tried) > len(whole)


def test_a_line_that_is_deleted_as_the_message_says_is_answered_anew_and_nothing_else(tmp_path):
    path, rows = tmp_path / "cell.jsonl", [prediction(number) for number in range(5)]
    opened(path, 2, 5).append(rows)
    opened(path, 2, 5).finish()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    file = opened(path, 2, 5)
    assert [[q.question_id for q in batch] for batch in file.left] == [["q2"]]
    file.append([rows[2]])
    file.finish()
    assert path.read_text() == "".join(lines)


def test_a_plain_json_reader_reads_every_line(tmp_path):
    path = tmp_path / "cell.jsonl"
    opened(path, 2, 2).append([prediction(0), prediction(1)])
    rows = [json.loads(line) for line in path.with_suffix(".jsonl.partial").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == ["q0", "q1"]
    assert all(re.fullmatch("[0-9a-f]{8}", row["crc32c"]) for row in rows)


def test_the_answers_of_another_cell_in_a_cells_place_are_refused(tmp_path):
    other = PredictionFile(tmp_path / "other.jsonl", Batching(2), asked(2), IDENTITY | {"keep": 8})
    other.append([prediction(0), prediction(1)])
    other.finish()
    (tmp_path / "other.jsonl").rename(tmp_path / "cell.jsonl")
    with pytest.raises(DamagedRun, match="made with other settings than its own") as caught:
        opened(tmp_path / "cell.jsonl", 2, 2)
    assert caught.value.exit_code == 4


def unreadable(path, kind):
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(
            {"empty": b"", "not utf-8": b"\xff\xfe\x80\n", "deep": b"[" * 9000 + b"\n", "list": b"[]\n"}[kind]
        )


@pytest.mark.parametrize("kind", ["empty", "folder", "loop", "not utf-8", "deep", "list"])
def test_whatever_lies_in_the_place_of_a_file_is_refused_with_what_to_do(tmp_path, kind):
    path = tmp_path / "eval" / "predictions" / "cell.jsonl"
    path.parent.mkdir(parents=True)
    unreadable(path, kind)
    with pytest.raises(DamagedRun, match=r"cell\.jsonl.*(delete|move).*run eval") as caught:
        opened(path, 2, 2)
    unreadable(tmp_path / "eval" / "cells.json", kind)
    with pytest.raises(DamagedRun, match=r"cells\.json.*delete it and run eval") as caught:
        read_cells(tmp_path / "eval")
    assert caught.value.exit_code == 4


def test_no_flipped_byte_of_the_record_of_cells_is_accepted(tmp_path):
    write_cells(tmp_path, {"cell": {"identity": IDENTITY, "selector_ms_per_image": 1.5}})
    whole = (tmp_path / "cells.json").read_bytes()
    assert json.loads(whole)["cell"]["identity"] == IDENTITY
    sound = read_cells(tmp_path)
    for _, damaged in flips(whole):
        (tmp_path / "cells.json").write_bytes(damaged)
        with pytest.raises(DamagedRun, match="cells.json is damaged"):
            read_cells(tmp_path)
    (tmp_path / "cells.json").write_bytes(whole)
    assert read_cells(tmp_path) == sound == {"cell": {"identity": IDENTITY, "selector_ms_per_image": 1.5}}


def test_files_of_an_earlier_version_are_read_and_said_once_to_be_unsealed(tmp_path, capsys):
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in ("a", "b"):
        lines = [json.dumps(asdict(prediction(number))) + "\n" for number in range(2)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "cells.json").write_text(json.dumps({"a": {"identity": IDENTITY | {"questions": "ab12"}}}))
    refuse_other_runs(tmp_path, {"a": IDENTITY | {"eval.split": "test"}})
    with pytest.raises(OtherRun, match="keep 4, now 5"):
        refuse_other_runs(tmp_path, {"a": IDENTITY | {"keep": 5}})
    capsys.readouterr()
    with click.Context(click.Command("eval")):
        assert read_cells(tmp_path)["a"]["identity"]["keep"] == 4
        for name in ("a", "b"):
            assert opened(folder / f"{name}.jsonl", 2, 2).rows == [prediction(0), prediction(1)]
        assert capsys.readouterr().err.count("is not sealed") == 1
    with pytest.raises(DamagedRun, match=r"cells\.json does not say what"):
        PredictionFile(folder / "a.jsonl", Batching(2), asked(2), IDENTITY, recorded=False)


def test_one_command_at_a_time_writes_into_a_folder(tmp_path):
    with alone(tmp_path), pytest.raises(RunLocked, match="wait for it") as caught, alone(tmp_path):
        pass
    assert caught.value.exit_code == 6
    with alone(tmp_path):
        pass


def test_predictions_of_other_settings_are_refused_with_the_difference(tmp_path):
    write_cells(tmp_path, {"cell": {"identity": {"keep": 4, "template": "A"}}})
    refuse_other_runs(tmp_path, {"cell": {"keep": 4, "template": "A"}, "new": {"keep": 8}})
    with pytest.raises(OtherRun, match=r"template 'A', now 'B'.*--overwrite") as caught:
        refuse_other_runs(tmp_path, {"cell": {"keep": 4, "template": "B"}})
    assert caught.value.exit_code == 2


def test_recording_one_cell_keeps_the_others(tmp_path):
    write_cells(tmp_path, {"a": {"identity": {}}})
    write_cells(tmp_path, {"b": {"identity": {}}})
    assert read_cells(tmp_path).keys() == {"a", "b"}
