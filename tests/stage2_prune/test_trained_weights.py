"""Trained weights that a config names: every command takes them, and refuses those of another pruner or model."""

import hashlib
import json
import re

import pytest
import yaml
from safetensors.torch import load_file, save_file

from configs.cli import run_to_exit_code
from configs.experiment import Experiment, Method
from stage2_prune.cli import group
from stage2_prune.pruner import TrainedPruner
from tests.helpers.checkpoints import tiny_llava
from tests.stage2_prune.conftest import settings

TRAIN = {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 12, "val_keep": 4}


def run(command, path, *flags):
    arguments = [command, *(["image_002.png"] if command == "show" else []), "--config", str(path), *map(str, flags)]
    return run_to_exit_code(lambda: group.main(arguments, standalone_mode=False))


def config(home, folder, run_dir, method, **changes):
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    content = settings(home, run_dir=str(run_dir), train=TRAIN, **changes)
    content["prune"] = {"methods": method if isinstance(method, list) else [method], "budgets": [4]}
    content["sweep"] = {"methods": "configured", "workers": 1, "rounds": 1}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def trained(home, tmp_path_factory):
    """The folder with the pruner.json of a finished training, in a run of its own."""
    folder = tmp_path_factory.mktemp("trained")
    assert run("train", config(home, folder, folder / "run", {"name": "learned_scorer", "hidden": 8})) == 0
    return folder / "run" / "pruner" / "learned_scorer"


@pytest.fixture
def named(trained):
    return {"name": "learned_scorer", "hidden": 8, "weights": str(trained)}


def test_weights_are_beside_a_methods_parameters_and_not_one_of_them():
    method = Method.model_validate({"name": "learned_scorer", "hidden": 8, "weights": "runs/a/pruner/learned_scorer"})
    assert method.parameters == {"hidden": 8} and str(method.weights) == "runs/a/pruner/learned_scorer"
    assert Method(name="keep_all").model_dump(mode="json") == {"name": "keep_all"}


@pytest.mark.parametrize("command", ["eval", "sweep", "analyse", "show"])
def test_weights_of_another_run_serve_every_command_and_the_result_says_which_they_were(
    home, tmp_path, trained, named, command
):
    path = config(home, tmp_path, tmp_path / "other", named)
    assert run(command, path) == 0
    folder = tmp_path / "other" / {"analyse": "selection", "show": "selection"}.get(command, command)
    digest = hashlib.sha256((trained / "weights.safetensors").read_bytes()).hexdigest()
    if command in ("eval", "sweep"):
        (row,) = json.loads((folder / "summary.json").read_text())["results"]
        assert row["weights"]["sha256"] == digest and not row["weights"]["folder"].startswith("/")
        assert (folder / row["weights"]["folder"]).resolve() == trained.resolve()
    if command == "analyse":
        (used,) = json.loads((folder / "selection.json").read_text())["settings"]["weights"].values()
        assert used == digest
    assert not (tmp_path / "other" / "pruner").exists()


def test_parity_scores_with_the_weights_that_the_config_names(home, tmp_path, named):
    from stage2_prune.cells import configured_pruners
    from stage2_prune.language import open_language
    from stage2_prune.parity.findings import Findings
    from stage2_prune.parity.run import _bound
    from stage2_prune.session import open_features

    content = settings(home, run_dir=str(tmp_path / "other"), prune={"methods": [named], "budgets": [4]})
    experiment = Experiment.model_validate(content)
    ((label, pruner),) = configured_pruners(experiment).items()
    features = open_features(experiment, pruner.needs | {"raw"})
    findings = Findings(experiment.store_location, [], [], {}, {}, [])
    bound = _bound(experiment, features, label, pruner, open_language(experiment.model), findings)
    assert isinstance(bound, TrainedPruner)
    saved = load_file(f"{named['weights']}/weights.safetensors")
    assert all((tensor == saved[name]).all() for name, tensor in bound.module.state_dict().items())
    assert not findings.notes


def test_a_test_split_that_changes_its_size_keeps_answers_and_weights(home, tmp_path, named, capsys):
    path = config(home, tmp_path, tmp_path / "other", [{"name": "keep_all"}, named])
    predictions = tmp_path / "other" / "sweep" / "eval" / "predictions"
    assert run("sweep", path, "--data.test", 4) == 0
    before = {one.name: one.read_text() for one in predictions.iterdir()}
    assert all(len(text.splitlines()) == 4 for text in before.values())
    for count, size in ((6, 6), (2, 6)):
        assert run("sweep", path, "--data.test", count) == 0, capsys.readouterr().err
        summary = json.loads((tmp_path / "other" / "sweep" / "summary.json").read_text())
        assert summary["n_questions"] == count and {row["n"] for row in summary["results"]} == {count}
        after = {one.name: one.read_text() for one in predictions.iterdir()}
        assert all(
            after[name].startswith(text) and len(after[name].splitlines()) == size for name, text in before.items()
        )
    capsys.readouterr()
    code = run_to_exit_code(lambda: group.main(["compare", str(tmp_path / "other/sweep")], standalone_mode=False))
    said = capsys.readouterr().out
    assert code == 0 and "2 questions about" in said and "4 questions that its last evaluation did not ask" in said


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"hidden": 4}, 4, "parameters.hidden 8, now 4"),
        ({"weights": "nowhere"}, 5, "`weights` must name a folder with pruner.json"),
        ({"name": "keep_all"}, 2, "expected `weights` of a trained method, keep_all has none: remove `weights`"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_both_values(home, tmp_path, named, capsys, change, code, said):
    method = {key: value for key, value in (named | change).items() if change.get("name") is None or key != "hidden"}
    path = config(home, tmp_path, tmp_path / "other", method)
    assert run("eval", path) == code
    assert said in capsys.readouterr().err


def test_the_weights_file_named_in_place_of_its_folder_is_told_so(home, tmp_path, named, trained, capsys):
    path = config(home, tmp_path, tmp_path / "other", named | {"weights": str(trained / "pruner.json")})
    assert run("eval", path) == 5
    assert "`weights` must name a folder with pruner.json" in capsys.readouterr().err


def test_weights_of_another_language_model_are_refused(home, tmp_path, named, capsys):
    other = tiny_llava(tmp_path / "checkpoint")
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight") and "language_model" in name)
    save_file(tensors | {name: tensors[name] * 2}, other / "model.safetensors", {"format": "pt"})
    model = {"checkpoint": str(other), "device": "cpu"}
    assert run("eval", config(home, tmp_path, tmp_path / "other", named, model=model)) == 4
    said = capsys.readouterr().err
    assert "were trained for another pruner: language_model " in said and "… now" not in said and ", now " in said


def test_a_method_whose_weights_are_named_is_not_trained(home, tmp_path, named, capsys):
    path = config(home, tmp_path, tmp_path / "other", named)
    assert run("train", path) == 2
    assert "remove `weights` from prune.methods" in capsys.readouterr().err


def test_two_weights_of_one_method_stand_side_by_side(home, tmp_path, named):
    methods = [named, {"name": "learned_scorer", "hidden": 8}]
    path = config(home, tmp_path, tmp_path / "other", methods)
    assert run("train", path, "--train.pruner", "learned_scorer@hidden=8") == 0
    assert run("eval", path) == 0
    rows = json.loads((tmp_path / "other" / "eval" / "summary.json").read_text())["results"]
    assert len({row["pruner"] for row in rows}) == 2 and [row["weights"]["sha256"] for row in rows].count(None) == 0
    assert run("sweep", path) == 0
    assert len(json.loads((tmp_path / "other" / "sweep" / "summary.json").read_text())["results"]) == 2


def test_a_refused_training_names_how_many_questions_there_were(home, tmp_path, capsys):
    path = config(home, tmp_path, tmp_path / "run", {"name": "learned_scorer", "hidden": 8})
    assert run("train", path) == 0
    assert run("train", path, "--data.train", 5) == 2
    said = capsys.readouterr().err
    assert re.search(r"train_questions: 5 questions, were \d+\)", said) and "train.learning_rate" not in said


def test_ranking_can_be_left_out(home, tmp_path):
    path = config(home, tmp_path, tmp_path / "run", {"name": "keep_all"})
    assert run("eval", path, "--eval.rank", "false") == 0
    (row,) = json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["results"]
    assert row["accuracy_ranked"] is None and row["n_ranked"] == 0
    lines = (tmp_path / "run" / "eval" / "predictions" / "keep_all-16-original.jsonl").read_text().splitlines()
    assert all(json.loads(line)["choices"] is None for line in lines)
    assert run("eval", path) == 2
