"""Predictions on disk: resumed where an interrupted run stopped, never mixed with those of other settings."""

import json

import pytest

from stage2_prune.ask import Prediction
from stage2_prune.errors import OtherRun, RunLocked
from stage2_prune.predictions import PredictionFile, alone, read_cells, refuse_other_runs, write_cells


def prediction(number: int) -> Prediction:
    return Prediction(f"q{number}", "i.png", None, ("röt", "red"), "RED\n", True, "red", True)


def test_predictions_read_back_as_they_were(tmp_path):
    rows = [prediction(number) for number in range(5)]
    path = tmp_path / "predictions" / "cell.jsonl"
    file = PredictionFile(path, batch_size=2, total=5)
    for start in (0, 2, 4):
        file.append(rows[start : start + 2])
    file.finish()
    assert PredictionFile(path, 2, 5).rows == rows
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
    PredictionFile(path, 2, 6).append(rows[:4])
    with path.with_suffix(".jsonl.partial").open("a") as torn:
        torn.write('{"question_id": "q4", "im')
    resumed = PredictionFile(path, 2, 6)
    assert resumed.rows == rows[:4]
    resumed.append(rows[4:])
    resumed.finish()
    assert PredictionFile(path, 2, 6).rows == rows
    assert not path.with_suffix(".jsonl.partial").exists()


def test_an_odd_last_batch_counts_as_whole(tmp_path):
    path = tmp_path / "cell.jsonl"
    rows = [prediction(number) for number in range(3)]
    PredictionFile(path, 2, 3).append(rows)
    assert PredictionFile(path, 2, 3).rows == rows


def test_rows_beyond_the_questions_are_cut_whether_the_file_was_declared_complete_or_not(tmp_path):
    path, rows = tmp_path / "cell.jsonl", [prediction(number) for number in range(5)]
    PredictionFile(path, 2, 5).append(rows)
    assert PredictionFile(path, 2, 3).rows == rows[:3]
    PredictionFile(path, 2, 3).append(rows[3:])
    path.with_suffix(".jsonl.partial").rename(path)
    cut = PredictionFile(path, 2, 3)
    cut.finish()
    assert cut.rows == PredictionFile(path, 2, 3).rows == rows[:3] and len(path.read_text().splitlines()) == 3


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
