"""Trained pruners that somebody crafted, trainings that are killed or shared, and budgets that cannot be."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stage2_prune.session import weights
from stage2_prune.session.sealed import write_object
from stage2_prune.training.ranks import Ranks
from stage2_prune.training.schedule import epoch_batches
from tests.faults.killed_training import MOMENTS
from tests.faults.runs import ROOT, invoke, snapshot, trial
from tests.faults.test_crafted_files import Bomb, header, length_of_header, offsets, shape, tensors

LABEL = "learned_scorer"
FEW = {"train": 8, "val": 4, "test": 4}


@pytest.fixture(scope="module")
def finished(home, tmp_path_factory):
    """The config of a finished training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    path = trial(home, folder, **sections(home))
    train_now(path)
    return path


def sections(home, **named):
    data = {"images": str(home / "data" / "images"), "questions": str(home / "data" / "questions.jsonl"), **FEW}
    return {"data": data, "store": {"path": str(home / "run" / "store")}} | named


def train_now(config, *flags):
    from configs.load import load
    from stage2_prune.training import train

    train.run(load(config, dict(flags)))


@pytest.fixture
def evaluate(home, finished, tmp_path, capsys):
    """Evaluate with the weights in a folder, or a file; return what is said."""
    whole = finished.parent / "run" / "pruner" / LABEL
    folder = Path(shutil.copytree(whole, tmp_path / "pruner"))

    def run(expect, given=folder):
        method = {"name": LABEL, "weights": str(given)}
        path = trial(home, tmp_path, **sections(home, prune={"methods": [method]}))
        return invoke(capsys, "eval", "--config", path, expect=expect)

    run.folder = folder
    return run


def damage(folder, change):
    """Change the weights, and name the changed ones in the record, as whoever crafts them would."""
    change(folder / "weights.safetensors")
    record = json.loads((folder / "pruner.json").read_text())
    del record["crc32c"]
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    write_object(folder / "pruner.json", record | {"sha256": digest})


@pytest.mark.parametrize("name", ["weights.pt", "pytorch_model.bin", "model.ckpt", "weights.safetensors"])
def test_fault_27_a_pickle_is_no_trained_pruner_whether_its_file_or_its_folder_is_named(evaluate, tmp_path, name):
    bomb = pickle.dumps(Bomb(tmp_path / "marker"))
    for path in evaluate.folder.iterdir():
        path.unlink()
    (evaluate.folder / name).write_bytes(bomb)
    for given in (evaluate.folder, evaluate.folder / name):
        assert "`weights` must name a folder with pruner.json" in evaluate(5, given)
    assert not (tmp_path / "marker").exists()


def test_fault_27_a_pickle_beside_or_in_place_of_the_weights_is_not_opened_and_nothing_falls_back_to_it(
    evaluate, tmp_path
):
    bomb = pickle.dumps(Bomb(tmp_path / "marker"))
    for name in ("weights.pt", "pytorch_model.bin"):
        (evaluate.folder / name).write_bytes(bomb)
    evaluate(0)
    shutil.rmtree(tmp_path / "run")
    damage(evaluate.folder, lambda path: path.write_bytes(bomb))
    assert "weights.safetensors is not a safetensors file that can be read" in evaluate(4)
    (evaluate.folder / "weights.safetensors").unlink()
    assert "weights.safetensors, it is missing" in evaluate(4)
    assert not (tmp_path / "marker").exists()


def test_fault_27_a_pickle_in_place_of_an_interrupted_training_is_not_opened(home, tmp_path, capsys):
    folder = tmp_path / "run" / "pruner" / LABEL
    folder.mkdir(parents=True)
    (folder / "state.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    said = invoke(capsys, "train", "--config", trial(home, tmp_path, **sections(home)), expect=4)
    assert "state.safetensors is damaged" in said and not (tmp_path / "marker").exists()


def first_tensor(finished):
    return sorted(load_file(finished.parent / "run" / "pruner" / LABEL / "weights.safetensors"))[-1]


def crowd(content):
    """Name 100,000 empty tensors behind the others."""
    end = max(entry["data_offsets"][1] for entry in content.values() if "data_offsets" in entry)
    content.update({f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for n in range(100_000)})


CRAFTED = {
    "a header longer than any": (lambda _: length_of_header(2**62), "header too large"),
    "a tensor beyond the end": (lambda name: offsets(name, 10**9), "invalid offset for tensor"),
    "two tensors on the same bytes": (lambda name: offsets(name, 0), "invalid offset for tensor"),
    "more values than bytes": (lambda name: header(lambda c: c[name].update(shape=[2**40, 2**40])), "overflow"),
    "a file cut short": (lambda _: lambda path: path.write_bytes(path.read_bytes()[:-9]), "not fully covered"),
    "an empty file": (lambda _: lambda path: path.write_bytes(b""), "header too small"),
    "nan": (lambda name: value_of(name, float("nan")), "{name} has NaN or infinity"),
    "infinity": (lambda name: value_of(name, float("inf")), "{name} has NaN or infinity"),
    "another shape": (lambda name: shape(name, 3, 5), "{name} is (3, 5) in float32, not "),
    "another dtype": (lambda name: tensors(lambda c: c.update({name: c[name].double()})), " in float64, not "),
    "a tensor too few": (lambda name: tensors(lambda c: c.pop(name)), "it lacks {name}"),
    "100,000 tensors too many": (lambda _: header(crowd), "it holds 100,000 tensors too many (x0, x1, x10, …)"),
}  # fmt: skip


def value_of(name, number):
    return tensors(lambda content: content[name].view(-1).__setitem__(0, number))


@pytest.mark.parametrize(("change", "said"), CRAFTED.values(), ids=CRAFTED.keys())
def test_fault_28_crafted_weights_of_a_pruner_are_refused_in_one_sentence_that_names_the_tensor(
    evaluate, finished, tmp_path, change, said
):
    name = first_tensor(finished)
    damage(evaluate.folder, change(name))
    begun = time.monotonic()
    message = evaluate(4)
    assert said.format(name=name) in message and time.monotonic() - begun < 60
    last = message.splitlines()[-1]
    assert last.startswith("error: ") and len(last) < 800
    assert not list((tmp_path / "run").glob("eval/predictions/*"))


def files(run_dir):
    """The files of a pruner's folder, but for hidden ones: locks, and what a killed process was writing."""
    return {
        name: content
        for name, content in snapshot(run_dir / "pruner" / LABEL).items()
        if not name.startswith(".") and name != "progress.json"
    }


@pytest.fixture(scope="module")
def killed(finished, tmp_path_factory):
    """The run folders of trainings that were killed, by the moment."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.faults.killed_training", str(finished), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_fault_37_a_training_killed_with_sigkill_goes_on_to_the_same_bytes_and_is_never_half_written(
    finished, killed, moment
):
    expected, here = files(finished.parent / "run"), killed / moment
    left = files(here)
    assert ("pruner.json" in left) == (moment == "before the card") and "README.md" not in left
    if "pruner.json" in left:
        folder = here / "pruner" / LABEL
        weights.read_tensors(folder, json.loads(left["pruner.json"]), "")
        assert left["weights.safetensors"] == expected["weights.safetensors"]
    train_now(finished, ("run_dir", here))
    assert files(here) == expected


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_fault_38_no_rank_misses_a_question_and_none_is_seen_twice_in_an_epoch(size, seed):
    images = [f"image {number // 3}" for number in range(50)]
    for epoch in (1, 2):
        seen = []
        for batch in epoch_batches(images, 7, seed, epoch):
            of_step = list(dict.fromkeys(images[question] for question in batch))
            shares = [Ranks(rank, size).share(of_step) for rank in range(size)]
            assert sorted(image for share in shares for image in share) == sorted(of_step)
            seen += [question for share in shares for question in batch if images[question] in share]
        assert sorted(seen) == list(range(len(images)))


def test_fault_40_a_pruner_that_keeps_everything_answers_and_ranks_to_the_bit_like_the_unpruned_model(
    home, tmp_path, capsys
):
    names = ("keep_all", "random", "cls_attention", "uniform_grid", "feature_norm")
    prune = {"methods": [{"name": name} for name in names], "budgets": [16], "seeds": 1}
    invoke(capsys, "eval", "--config", trial(home, tmp_path, **sections(home, prune=prune)))
    answers = {
        path.name.split("-")[0]: [
            {key: row[key] for key in ("question_id", "prediction", "ranked", "scores") if key in row}
            for row in map(json.loads, path.read_text().splitlines())
        ]
        for path in (tmp_path / "run" / "eval" / "predictions").glob("*.jsonl")
    }
    assert answers.keys() == set(names) and all(found == answers["keep_all"] for found in answers.values())


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("0", "greater than 0; keep_none keeps nothing"),
        ("-3", "prune.budgets"),
        ("577", "577"),
        ("many", "prune.budgets"),
        ("16.5", "16.5"),
        ("nan", "prune.budgets"),
        ("true", "prune.budgets"),
    ],
)
def test_fault_40_a_number_of_tokens_that_cannot_be_kept_is_a_usage_error(home, tmp_path, capsys, keep, said):
    prune = {"methods": [{"name": "cls_attention"}], "budgets": [4]}
    path = trial(home, tmp_path, **sections(home, prune=prune))
    assert said in invoke(capsys, "eval", "--config", path, f"--prune.budgets=[{keep}]", expect=2)
    assert not list((tmp_path / "run").glob("eval/predictions/*"))
