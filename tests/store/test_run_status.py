"""`status` of a run folder: evaluations, sweeps and trainings, from their files and without torch."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from store.cli import group
from tests.store.stores import store_of


def run_of(folder):
    """A run folder as eval, sweep and train leave it, two cells under way, a line of one cut."""
    predictions = folder / "eval" / "predictions"
    predictions.mkdir(parents=True)
    line = json.dumps({"question_id": "1", "right": True, "crc32c": "00000000"}) + "\n"
    (predictions / "keep_all-576-original.jsonl").write_text(line * 5)
    (predictions / "random-64-original-seed0.jsonl.partial").write_text(line * 2 + line[:9])
    (predictions / "random-32-original-seed0.jsonl").write_text(line * 5)
    (predictions / "random-32-original-seed0.jsonl.partial").write_text(line * 1)  # its split grew
    (folder / "eval" / "progress.json").write_text(json.dumps({"done": 13, "total": 25, "per_second": 0.5}))
    (folder / "sweep").mkdir()
    training = folder / "pruner" / "learned_scorer"
    training.mkdir(parents=True)
    rows = [{"event": "step", "epoch": 1, "step": 7, "crc32c": "0"}, {"event": "step", "epoch": 1, "step": 8}]
    (training / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "st')
    (training / "config.yaml").write_text("train: {epochs: 4}\n")
    finished = folder / "pruner" / "other"
    finished.mkdir()
    (finished / "pruner.json").write_text(json.dumps({"training": {"val_accuracy": 0.875}, "crc32c": "0"}))
    return folder


def status_of(*arguments):
    """What `status --json` prints."""
    done = CliRunner().invoke(group, ["status", *map(str, arguments), "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_status_counts_evaluations_sweeps_and_trainings_of_a_run_folder(tmp_path):
    found = status_of(run_of(tmp_path))["run"]
    assert found["eval"]["cells_complete"] == 1 and found["eval"]["answers"] == 13
    assert found["eval"]["cells_in_progress"] == {"random-32-original-seed0": 6, "random-64-original-seed0": 2}
    assert found["eval"]["summarised"] is False and found["sweep"]["rows"] is None
    training = found["trainings"]["learned_scorer"]
    assert (training["trained"], training["epoch"], training["epochs"], training["step"]) == (False, 1, 4, 8)
    assert found["trainings"]["other"]["trained"] and found["trainings"]["other"]["val_accuracy"] == 0.875


def test_status_of_a_store_says_how_far_the_run_around_it_is(tmp_path):
    run = run_of(tmp_path / "run")
    store = store_of(tmp_path / "made").rename(run / "store")
    of_store, of_run = status_of(store), status_of(run)
    assert of_store["run"]["eval"]["cells_in_progress"] == of_run.pop("run")["eval"]["cells_in_progress"]
    assert of_run["images"] == 5 and of_run.items() <= of_store.items()
    said = CliRunner().invoke(group, ["status", str(store)], catch_exceptions=False).stdout
    assert "images" in said.splitlines()[0]
    assert "eval: 1 cell complete, 2 begun; 13 answers, not summarised yet" in said
    assert "train learned_scorer: epoch 1 of 4, step 8" in said
    assert "train other: finished, validation accuracy 0.875" in said


def test_status_takes_the_run_folder_of_the_config(tmp_path):
    run_of(tmp_path / "run")
    config = tmp_path / "trial.yaml"
    config.write_text(f"model: {{checkpoint: x}}\ndata: {{images: i}}\nrun_dir: {tmp_path / 'run'}\n")
    found = status_of("--config", config)
    assert found["run"]["eval"]["answers"] == 13 and "images" not in found


def test_status_estimates_the_time_that_is_left_of_work_under_way(tmp_path):
    run = run_of(tmp_path)
    paces = {"sweep": {"done": 0, "total": 9, "per_second": None}, "pruner/learned_scorer": {"done": 8, "total": 60}}
    for folder, pace in paces.items():
        (run / folder / "progress.json").write_text(json.dumps({"per_second": 2.0} | pace))
    found = status_of(run)["run"]
    assert found["eval"]["progress"] == {
        "done": 13,
        "total": 25,
        "per_second": 0.5,
        "eta_seconds": 24.0,
        "stopped": False,
    }
    assert found["sweep"]["progress"] == {
        "done": 0,
        "total": 9,
        "per_second": None,
        "eta_seconds": None,
        "stopped": False,
    }
    assert found["trainings"]["learned_scorer"]["progress"]["eta_seconds"] == (52 + 3 * 60) / 2
    said = CliRunner().invoke(group, ["status", str(run)], catch_exceptions=False).stdout
    assert "\n  13 of 25 answers, 30.0/min, 0:00:24 to go\n" in said and "\n  0 of 9 answers\n" in said
    assert "\n  8 of 60 steps of this epoch, 2.0/s, 0:01:56 to go\n" in said


@pytest.mark.parametrize(
    ("per_second", "age", "stopped"),
    [
        (0.5, 10, False),
        (0.5, 100, True),
        (0.01, 1000, False),
        (0.01, 5000, True),
        (None, 100, False),
        (None, 500, True),
    ],
)
def test_work_whose_progress_is_not_written_any_more_is_said_to_be_stopped(tmp_path, per_second, age, stopped):
    run = run_of(tmp_path)
    pace = {"done": 13, "total": 25, "per_second": per_second, "written": time.time() - age}
    (run / "eval" / "progress.json").write_text(json.dumps(pace))
    assert status_of(run)["run"]["eval"]["progress"]["stopped"] is stopped
    said = CliRunner().invoke(group, ["status", str(run)], catch_exceptions=False).stdout
    assert ("\n  stopped at 13 of 25 answers\n" in said) is stopped and (" to go" in said) <= (not stopped)


def test_the_cells_of_a_sweep_under_way_are_counted(tmp_path):
    run = run_of(tmp_path)
    (run / "eval").rename(run / "sweep" / "eval")
    found = status_of(run)["run"]
    assert found["eval"] is None and found["sweep"]["cells"]["answers"] == 13
    said = CliRunner().invoke(group, ["status", str(run)], catch_exceptions=False).stdout
    assert "sweep: 1 cell complete, 2 begun; 13 answers, not summarised yet" in said


def test_a_finished_evaluation_and_sweep_are_summarised(tmp_path):
    run = run_of(tmp_path)
    for folder in ("eval", "sweep"):
        (run / folder / "summary.json").write_text(json.dumps({"results": [{}, {}, {}]}))
    found = status_of(run)["run"]
    assert found["eval"]["summarised"] and found["sweep"]["summarised"] and found["sweep"]["rows"] == 3


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{", b'{"training": 3}'])
def test_damaged_files_of_a_run_do_not_stop_the_status(tmp_path, content):
    run = run_of(tmp_path)
    for path in (run / "pruner" / "other" / "pruner.json", run / "sweep" / "summary.json"):
        path.write_bytes(content)
    (run / "pruner" / "learned_scorer" / "log.jsonl").write_bytes(content + b"\n")
    (run / "eval" / "progress.json").write_bytes(content)
    assert status_of(run)["run"]["eval"]["answers"] == 13


def test_the_status_of_a_run_imports_no_framework(tmp_path):
    script = (
        "import sys\n"
        "from store.cli import group\n"
        f"group.main(['status', {str(run_of(tmp_path))!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "13 answers" in done.stdout
