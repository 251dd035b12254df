"""A trained pruner goes to a hub and comes back: whole or not at all, naming no machine, refused where it does not belong."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest
import yaml
from safetensors.torch import load_file, save_file

from configs.cli import run_to_exit_code
from stage2_prune.cli import group
from stage2_prune.session.sealed import write_object
from stage2_prune.sharing.hub import SHARED
from tests.faults.runs import ROOT, snapshot
from tests.helpers.checkpoints import tiny_llava
from tests.stage2_prune.sharing.conftest import LABEL, METHOD
from tests.stage2_prune.test_trained_weights import config, run

NAME = "someone/pruner"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the hub's client about itself


def command(*arguments):
    return run_to_exit_code(lambda: group.main([*map(str, arguments)], standalone_mode=False))


@pytest.fixture
def pushed(hub, shared):
    """The hub with the pruner."""
    assert command("push", shared / "run" / "pruner" / LABEL, NAME) == 0
    return hub


def files(hub):
    return hub.repositories[NAME].commits[-1][1]


def test_a_finished_training_holds_the_files_that_are_shared_and_nothing_else_but_its_locks(shared):
    names = {path.name for path in (shared / "run" / "pruner" / LABEL).iterdir() if not path.name.startswith(".")}
    assert names - {"progress.json"} == set(SHARED)


def test_a_pushed_pruner_that_is_pulled_serves_an_evaluation_to_the_same_answers(
    pushed, shared, home, tmp_path, capsys
):
    assert set(files(pushed)) == set(SHARED)
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0
    assert f"{NAME} at {pushed.repositories[NAME].commits[-1][0]} is in" in capsys.readouterr().err
    names = {path.name for path in (tmp_path / "pulled").iterdir()}
    assert names == {*SHARED, "origin.json"} and [path.name for path in tmp_path.iterdir()] == ["pulled"]
    method = METHOD | {"weights": str(tmp_path / "pulled")}
    assert run("eval", config(home, tmp_path / "c", tmp_path / "run", [{"name": "keep_all"}, method])) == 0
    assert "trained on features of another machine" not in capsys.readouterr().err
    ours, theirs = (
        [json.loads(line)["prediction"] for line in next(folder.glob("learned_scorer-*")).read_text().splitlines()]
        for folder in (tmp_path / "run/eval/predictions", shared / "run/eval/predictions")
    )
    assert ours == theirs


def test_what_is_pushed_names_no_folder_of_this_machine_and_its_seals_hold(pushed, shared, home, tmp_path):
    text = b"".join(files(pushed).values()).decode("utf-8", "replace")
    assert str(home) not in text and "../" not in text and str(home.parent.name) not in text
    assert yaml.safe_load(files(pushed)["config.yaml"])["data"]["questions"] == "questions.jsonl"
    record = json.loads(files(pushed)["pruner.json"])
    assert record["training"]["config"]["store"]["path"] == "store"
    assert record["training"]["config"]["train"]["learning_rate"] == 1e-3
    assert record["sha256"] == hashlib.sha256(files(pushed)["weights.safetensors"]).hexdigest()
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0  # which checks the record's seal


def test_a_push_makes_one_commit_and_says_where_it_is_and_a_private_repository_needs_its_token(
    hub, shared, tmp_path, capsys, monkeypatch
):
    assert command("push", shared / "run" / "pruner" / LABEL, NAME, "--private") == 0
    (commit,) = hub.repositories[NAME].commits
    assert capsys.readouterr().out == f"{hub.address}/{NAME}/commit/{commit[0]}\n" and hub.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", "another")
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 5
    assert "log in with `hf auth login`" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert command("push", shared / "run" / "pruner" / LABEL, NAME) == 5


def test_a_pull_of_what_is_there_changes_nothing_and_of_something_newer_is_refused(
    pushed, shared, trained, tmp_path, capsys
):
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0
    before, asked = snapshot(tmp_path / "pulled"), len(pushed.requests)
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0
    assert not any("resolve" in path for _, path, _ in pushed.requests[asked:])
    first = pushed.repositories[NAME].commits[0][0]
    assert command("card", trained, "--licence", "mit") == 0 and command("push", trained, NAME) == 0
    capsys.readouterr()
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 2
    assert f"it holds {NAME} at {first}" in capsys.readouterr().err
    assert command("pull", NAME, "--out", tmp_path / "pulled", "--revision", first) == 0
    assert snapshot(tmp_path / "pulled") == before
    assert command("pull", NAME, "--out", tmp_path / "newer") == 0
    assert "license: mit" in (tmp_path / "newer" / "README.md").read_text()


def test_a_folder_that_holds_something_else_is_left_alone(pushed, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert command("pull", NAME, "--out", tmp_path / "mine") == 2
    assert "it holds something else" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_pull_that_is_killed_leaves_no_folder_and_goes_on_where_it_was(pushed, tmp_path, real_python):
    pull = [sys.executable, "-m", "stage2_prune", "pull", NAME, "--out", "pulled"]
    environment = os.environ | pushed.environment | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home")}
    pushed.stalls_in = "weights.safetensors"
    process = subprocess.Popen(pull, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    assert pushed.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "pulled").exists()
    pushed.stalls_in = None
    pushed.go_on.set()
    done = subprocess.run(pull, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == {*SHARED, "origin.json"}
    assert not list(tmp_path.glob(".pulled*"))
    weights = [asked for _, path, asked in pushed.requests if path.endswith("weights.safetensors")]
    assert weights.count(None) >= 2  # both pulls asked for it


@pytest.mark.parametrize("cut", [b"", b"other weights"])
def test_a_file_that_comes_damaged_is_noticed_and_no_folder_is_left(pushed, tmp_path, capsys, cut):
    files(pushed)["weights.safetensors"] = cut
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 4
    assert "it is not the one that pruner.json names: remove" in capsys.readouterr().err
    assert not (tmp_path / "pulled").exists()


def test_nothing_that_could_be_run_is_pulled(pushed, tmp_path):
    files(pushed).update({"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"pickle", "x.safetensors": b"x"})
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0
    assert {path.name for path in (tmp_path / "pulled").iterdir()} == {*SHARED, "origin.json"}


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return type(self.marker).touch, (self.marker,)


def replaced(folder, data):
    """Put other bytes in place of the weights, and a record that names them: what a crafted repository holds."""
    (folder / "weights.safetensors").write_bytes(data)
    record = json.loads((folder / "pruner.json").read_text())
    del record["crc32c"]
    write_object(folder / "pruner.json", record | {"sha256": hashlib.sha256(data).hexdigest()})


def test_fault_27_a_pickle_that_a_repository_calls_safetensors_is_not_opened(pushed, trained, tmp_path, capsys):
    replaced(trained, pickle.dumps(Bomb(tmp_path / "marker")))
    files(pushed).update({name: (trained / name).read_bytes() for name in ("weights.safetensors", "pruner.json")})
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 4
    assert "is not a safetensors file that can be read" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists() and not (tmp_path / "pulled").exists()
    assert command("push", trained, NAME) == 4 and len(pushed.repositories[NAME].commits) == 1


def test_a_pulled_pruner_is_refused_field_by_field_where_features_or_model_are_others(pushed, home, tmp_path, capsys):
    assert command("pull", NAME, "--out", tmp_path / "pulled") == 0
    other = tiny_llava(tmp_path / "checkpoint")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight") and "language_model" in name)
    save_file(tensors | {name: tensors[name] * 2}, other / "model.safetensors", {"format": "pt"})
    record = json.loads((tmp_path / "pulled" / "pruner.json").read_text())
    del record["crc32c"]
    raw = record["belongs_to"]["features"]["raw"]
    raw["dtype"], raw["patch_order"] = "float16", "spiral"
    write_object(tmp_path / "pulled" / "pruner.json", record)
    method = METHOD | {"weights": str(tmp_path / "pulled")}
    path = config(home, tmp_path / "c", tmp_path / "run", method, model={"checkpoint": str(other), "device": "cpu"})
    capsys.readouterr()
    assert run("eval", path) == 4
    said = capsys.readouterr().err
    assert "features.raw.dtype 'float16', now 'float32'" in said and "features.raw.patch_order 'spiral', now" in said
    assert "language_model " in said


def test_numeric_fields_that_differ_are_a_note_and_no_refusal(shared, trained, home, tmp_path, capsys):
    record = json.loads((trained / "pruner.json").read_text())
    del record["crc32c"]
    record["belongs_to"]["numeric"]["raw"]["torch"] = "1.0"
    write_object(trained / "pruner.json", record)
    path = config(home, tmp_path / "c", tmp_path / "run", METHOD | {"weights": str(trained)})
    assert run("eval", path) == 0
    said = capsys.readouterr().err
    assert said.count("were trained on features of another machine or other versions (raw.torch '1.0', now") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("pull", "nobody/nothing"), 5, "expected nobody/nothing on the hub"),
        (("pull", NAME, "--revision", "tomorrow"), 5, "correct the name or the revision"),
        (("pull", "nothing"), 2, "as OWNER/NAME, got 'nothing'"),
        (("pull", "a b/c?"), 2, "as OWNER/NAME, got 'a b/c?'"),
        (("pull", "some/data"), 5, "it has no weights.safetensors and no pruner.json"),
    ],
)
def test_a_repository_that_cannot_be_pulled_is_said_in_one_sentence(pushed, tmp_path, capsys, arguments, code, said):
    pushed.repositories["some/data"] = type(pushed.repositories[NAME])(False)
    pushed.repositories["some/data"].commit({"README.md": b"# data"})
    assert command(*arguments, "--out", tmp_path / "pulled") == code
    printed = capsys.readouterr().err
    assert said in printed and "Traceback" not in printed and not list(tmp_path.iterdir())


def test_a_licence_that_the_hub_does_not_know_is_refused_by_it_before_anything_is_uploaded(hub, trained, capsys):
    assert command("card", trained, "--licence", "do what you like") == 0
    assert command("push", trained, NAME) == 5
    assert '"license" must be one of' in capsys.readouterr().err
    assert not hub.repositories[NAME].commits and not hub.blobs


def test_without_a_network_push_and_pull_say_so(trained, tmp_path, capsys):
    from store.checkpoint.files import hub_answers

    hub_answers.cache_clear()
    assert command("push", trained, NAME) == 5 and command("pull", NAME, "--out", tmp_path / "pulled") == 5
    assert capsys.readouterr().err.count("expected to reach the hub") == 2
    assert command("push", tmp_path, NAME) == 5
    assert "expected a folder with pruner.json" in capsys.readouterr().err
