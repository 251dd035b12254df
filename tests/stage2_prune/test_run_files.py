"""Files of a run that are read back, through the command line: damaged ones are refused with a remedy that works."""

import json
import shutil

import pytest
import yaml

from configs.cli import run_to_exit_code
from stage2_prune.cli import group
from stage2_prune.errors import DamagedRun
from stage2_prune.evaluation.predictions import alone
from stage2_prune.pruners.learned_scorer import LearnedScorer
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.session.weights import read_record
from stage2_prune.training import state
from tests.stage2_prune.conftest import settings

CONFIG = {
    "prune": {"methods": [{"name": "keep_all"}, {"name": "learned_scorer", "hidden": 8}], "budgets": [5]},
    "train": {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 12, "val_keep": 4},
    "sweep": {"methods": ["keep_all", "uniform_grid"], "workers": 1, "rounds": 1},
}
READ_BY = {
    "eval/cells.json": ("eval", "delete it and run eval"),
    "eval/predictions/keep_all-16-original.jsonl": ("eval", "run eval (or sweep) again"),
    "pruner/learned_scorer/pruner.json": (
        "eval",
        "copy the folder that `train` wrote again, or delete the whole folder",
    ),
    "pruner/learned_scorer/weights.safetensors": (
        "eval",
        "copy the folder that `train` wrote again, or delete the whole folder",
    ),
    "sweep/latency.json": ("sweep", "delete it and run the sweep again"),
    "sweep/eval/cells.json": ("sweep", "delete it and run eval (or sweep)"),
    "selection/selection.json": ("analyse", "delete it and run analyse again"),
}


def run(command, folder, *flags):
    arguments = [command, "--config", str(folder / "tiny.yaml"), "--run-dir", str(folder / "run"), *flags]
    return run_to_exit_code(lambda: group.main(arguments, standalone_mode=False))


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    """The folder of a run in which every command has written its files."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings(home, **CONFIG)))
    for command in ("train", "eval", "sweep", "analyse"):
        assert run(command, folder) == 0
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copied")
    return tmp_path / "copied"


def changed(content):
    """A digit, or where there is none a letter, in the middle is another."""
    place = next(place for place in range(len(content) // 2, len(content)) if content[place : place + 1].isalnum())
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "folder"])
@pytest.mark.parametrize("file", READ_BY)
def test_a_damaged_file_is_refused_by_the_command_that_reads_it_and_its_remedy_works(copied, capsys, file, kind):
    path, (command, remedy) = copied / "run" / file, READ_BY[file]
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flipped": changed(content), "cut": content[: len(content) // 2], "empty": b""}[kind])
    capsys.readouterr()
    if kind == "cut" and file.endswith("jsonl"):
        assert run(command, copied) == 0 and path.read_bytes() == content  # as after a kill: the rest is answered anew
        return
    assert run(command, copied) == 4
    said = capsys.readouterr().err
    assert path.name in said and remedy in said and said.count("\n") == 1
    if "pruner" in file:
        return
    shutil.rmtree(path) if kind == "folder" else path.unlink()
    assert run(command, copied) == 0


def test_answers_outlive_the_record_of_cells_as_every_line_names_its_settings(copied, capsys):
    predictions = copied / "run" / "eval" / "predictions"
    before = {path.name: path.stat().st_mtime_ns for path in predictions.iterdir()}
    (copied / "run" / "eval" / "cells.json").unlink()
    assert run("eval", copied) == 0
    assert {path.name: path.stat().st_mtime_ns for path in predictions.iterdir()} == before
    (copied / "run" / "eval" / "cells.json").unlink()
    assert run("eval", copied, "--eval.max-new-tokens", "2") == 4
    assert "made with other settings than its own" in capsys.readouterr().err


def test_an_answer_that_was_turned_from_right_to_wrong_changes_no_table_and_no_comparison(copied, capsys):
    path = copied / "run" / "eval" / "predictions" / "keep_all-16-original.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    right = {True: ('"right": true', '"right": false'), False: ('"right": false', '"right": true')}
    lines[1] = lines[1].replace(*right[json.loads(lines[1])["right"]])
    path.write_text("".join(lines))
    assert run("eval", copied) == 4
    said = f"line 2 of {path} is damaged (its checksum does not match): delete this line and run eval (or sweep) again"
    assert said in capsys.readouterr().err
    code = run_to_exit_code(lambda: group.main(["compare", str(copied / "run")], standalone_mode=False))
    assert code == 4 and said in capsys.readouterr().err


def test_two_prediction_files_that_changed_places_are_refused(copied, capsys):
    folder = copied / "run" / "eval" / "predictions"
    one, other = folder / "keep_all-16-original.jsonl", folder / "learned_scorer-5-original.jsonl"
    for old, new in ((one, folder / "aside"), (other, one), (folder / "aside", other)):
        old.rename(new)
    assert run("eval", copied) == 4
    assert "made with other settings than its own, such as another cell's" in capsys.readouterr().err
    code = run_to_exit_code(lambda: group.main(["compare", str(copied / "run")], standalone_mode=False))
    assert code == 4 and "cells.json says" in capsys.readouterr().err


def unsealed(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else []
    if path.suffix == ".jsonl":
        kept = [{k: v for k, v in line.items() if k not in ("made_with", "crc32c")} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    else:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "crc32c"}))


def test_a_run_of_an_earlier_version_is_read_by_eval_and_compare_with_one_sentence(copied, capsys):
    predictions = copied / "run" / "eval" / "predictions"
    for path in [
        *predictions.iterdir(),
        copied / "run/eval/cells.json",
        copied / "run/pruner/learned_scorer/pruner.json",
    ]:
        unsealed(path)
    capsys.readouterr()
    assert run("eval", copied) == 0
    assert capsys.readouterr().err.count("is not sealed") == 1
    code = run_to_exit_code(lambda: group.main(["compare", str(copied / "run")], standalone_mode=False))
    assert code == 0 and capsys.readouterr().err.count("is not sealed") == 1


def test_one_training_at_a_time_writes_a_pruners_folder(copied, capsys):
    with alone(copied / "run" / "pruner" / "learned_scorer"):
        assert run("train", copied) == 6
    assert "is being written by another process" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "folder"])
@pytest.mark.parametrize("name", ["state.safetensors", "log.jsonl"])
def test_a_damaged_state_of_a_training_is_refused_and_begun_anew_with_overwrite(
    copied, capsys, monkeypatch, name, kind
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("stage2_prune.training.trainer.Trainer._finish", killed)
        assert run("train", copied, "--overwrite") == 130
    path = copied / "run" / "pruner" / "learned_scorer" / name
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes({"flipped": changed(content), "cut": content[: len(content) // 2], "empty": b""}[kind])
    code = run("train", copied)
    said = capsys.readouterr().err
    assert code == (2 if name == "log.jsonl" and kind in ("cut", "empty") else 4)
    assert name in said and "start again with --overwrite" in said and "Traceback" not in said


def test_no_flipped_byte_of_a_record_of_weights_or_of_a_state_is_accepted(whole, tmp_path):
    folder = whole / "run" / "pruner" / "learned_scorer"
    content = (folder / "pruner.json").read_bytes()
    assert json.loads(content)["pruner"] == "learned_scorer" and read_record(folder) is not None
    for place in range(0, len(content), 7):
        (tmp_path / "pruner.json").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DamagedRun):
            read_record(tmp_path)
    module = LearnedScorer(hidden=2).fresh(ModuleSpec((1, 1), {"cls_attention": (1, 1), "raw": (1, 1)}, 1), 0).module
    optimiser = state.torch.optim.AdamW(module.parameters())
    state.save_state(tmp_path, state.Position(), {"a": 1}, module, optimiser, {})
    content = (tmp_path / state.STATE).read_bytes()
    sound = state.read_state(tmp_path)
    assert sound is not None and sound.identity == {"a": 1}
    for place in range(0, len(content), 3):
        (tmp_path / state.STATE).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = state.read_state(tmp_path)
        except DamagedRun:
            continue
        assert found is not None and (found.identity, found.position) == (sound.identity, sound.position)
