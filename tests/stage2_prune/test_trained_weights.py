"""Trained weights that a config names: every command takes them, and refuses those of another pruner or model."""

import hashlib
import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from safetensors.torch import load_file, save_file

from configs.cli import run_to_exit_code
from configs.experiment import Experiment, Method
from stage2_prune.cli import group
from stage2_prune.evaluation.prediction_lines import as_line, read_lines
from stage2_prune.evaluation.shortcuts import shortcut, unseeing
from stage2_prune.pruning.pruner import TrainedPruner
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
    from stage2_prune.evaluation.cells import configured_pruners
    from stage2_prune.find_family import open_language
    from stage2_prune.parity.answers import bound
    from stage2_prune.parity.findings import Findings, ParityScorer
    from stage2_prune.session.session import open_features

    content = settings(home, run_dir=str(tmp_path / "other"), prune={"methods": [named], "budgets": [4]})
    experiment = Experiment.model_validate(content)
    ((label, pruner),) = configured_pruners(experiment).items()
    features = open_features(experiment, pruner.needs | {"raw"})
    findings = Findings(experiment.store_location, [], [], {}, {}, [], ParityScorer(label, pruner.parameters()))
    with_weights = bound(experiment, features, pruner, open_language(experiment.model), findings)
    assert isinstance(with_weights, TrainedPruner)
    saved = load_file(f"{named['weights']}/weights.safetensors")
    assert all((tensor == saved[name]).all() for name, tensor in with_weights.module.state_dict().items())
    assert not findings.notes and findings.scorer.weights == "trained"


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
    assert "were trained for another pruner (language_model " in said and "… now" not in said and ", now " in said


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


def rewritten(path, change):
    """A predictions file whose answers are changed, sealed as eval seals them."""
    lines, _ = read_lines(path)
    path.write_text("".join(as_line(change(line.prediction), str(line.made_with)) for line in lines))


def test_a_trained_method_that_is_right_where_the_unpruned_model_is_not_is_pointed_out(home, tmp_path, named, capsys):
    path = config(home, tmp_path, tmp_path / "other", [{"name": "keep_all"}, {"name": "cls_attention"}, named])
    assert run("eval", path) == 0
    assert "shortcut" not in capsys.readouterr().out
    predictions = tmp_path / "other" / "eval" / "predictions"
    for name in ("learned_scorer-4-original", "cls_attention-4-compact"):
        rewritten(predictions / f"{name}.jsonl", lambda one: replace(one, prediction=one.answers[0], right=True))
    assert run("eval", path) == 0
    said = "learned_scorer-4-original answers 1.000 of the questions right, but only 0.000 as the unpruned model does"
    table = capsys.readouterr().out
    assert said in table and table.count("found a shortcut") == 1  # a method that learned nothing was lucky
    rows = {row["pruner"]: row for row in json.loads((tmp_path / "other/eval/summary.json").read_text())["results"]}
    assert rows["learned_scorer"]["agreement"] == 0 and rows["keep_all"]["agreement"] == 1
    arguments = ["compare", str(tmp_path / "other"), "--factor", "positions"]
    assert run_to_exit_code(lambda: group.main(arguments, standalone_mode=False)) == 0
    text = capsys.readouterr().out
    assert said in text and text.count("found a shortcut") == 1


def test_agreement_up_to_ten_points_below_accuracy_is_no_shortcut():
    assert shortcut("a", 0.9, 0.8) is None and shortcut("a", 0.5, 0.9) is None and shortcut("a", 0.9, None) is None
    assert "0.900 of the questions right, but only 0.525" in str(shortcut("a", 0.9, 0.525))


def test_a_model_that_answers_no_better_with_the_image_than_without_it_is_pointed_out(home, tmp_path, capsys):
    said = "the model answers no better with the image than without it"
    path = config(home, tmp_path, tmp_path / "other", [{"name": "keep_all"}, {"name": "keep_none"}])
    assert run("eval", path) == 0
    blind = next((tmp_path / "other" / "eval" / "predictions").glob("keep_none-*.jsonl"))
    rewritten(blind, lambda one: replace(one, prediction=one.answers[0], right=True))
    capsys.readouterr()
    assert run("eval", path) == 0 and capsys.readouterr().out.count(said) == 1
    rows = [{"pruner": "keep_all@a=1", "accuracy": 0.5}, {"pruner": "keep_none", "accuracy": 0.4}]
    assert unseeing(rows) is None and unseeing(rows[:1]) is None and unseeing(rows[1:]) is None
    assert said in str(unseeing([rows[0], rows[1] | {"accuracy": 0.5}]))


def test_eval_and_compare_give_the_same_interval_for_the_same_result(home, tmp_path, named, capsys):
    methods = [{"name": "keep_all"}, {"name": "random"}, named]
    path = config(home, tmp_path, tmp_path / "other", methods, eval={"batch_size": 4, "bootstrap": 37, "seed": 5})
    assert run("eval", path) == 0
    predictions = tmp_path / "other" / "eval" / "predictions"
    for number, file in enumerate(sorted(predictions.iterdir())):  # some right answers: an interval with two ends
        rewritten(file, lambda one, number=number: replace(one, right=(int(one.image[6:9]) // 3 + number) % 3 == 0))
    assert run("eval", path) == 0
    rows = json.loads((tmp_path / "other" / "eval" / "summary.json").read_text())["results"]
    expected = {(row["pruner"], row["accuracy"]): row["ci95"] for row in rows}
    capsys.readouterr()
    arguments = ["compare", str(tmp_path / "other"), "--json"]
    assert run_to_exit_code(lambda: group.main(arguments, standalone_mode=False)) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["result"].split("-")[0], row["accuracy"]): row["ci95"] for row in found["results"]} == expected
    assert found["resamples"] == 37 and any(low < high for low, high in expected.values())


def test_results_about_one_image_have_no_interval_in_eval_as_in_compare(home, tmp_path, capsys):
    path = config(home, tmp_path, tmp_path / "run", [{"name": "keep_all"}, {"name": "cls_attention"}])
    assert run("eval", path, "--data.test", 1) == 0
    rows = json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["results"]
    assert [row["ci95"] for row in rows] == [None, None]
    assert run("sweep", path, "--data.test", 1) == 0


def test_latencies_are_given_with_their_noise(home, tmp_path, named, capsys):
    path = config(home, tmp_path, tmp_path / "run", [{"name": "keep_all"}, named])
    assert run("sweep", path) == 0
    assert re.search(r"\d\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", capsys.readouterr().out)
    rows = json.loads((tmp_path / "run" / "sweep" / "summary.json").read_text())["results"]
    assert all(row["latency_low"] <= row["latency_high"] for row in rows)
    assert run("eval", path) == 0
    assert re.search(r"\d\.\d\d \(\d+\.\d\d to \d+\.\d\d\)", capsys.readouterr().out)
    for row in json.loads((tmp_path / "run" / "eval" / "summary.json").read_text())["results"]:
        low, high = row["selector_ms_range"]
        assert low <= row["selector_ms_per_image"] <= high
    other = config(home, tmp_path / "o", tmp_path / "other", [named])
    assert run("eval", other, "--eval.batch-size", 100) == 0  # one batch: its noise is not known
    table = capsys.readouterr().out
    assert re.search(r"\| learned_scorer \|.*\|\s+- \|\n", table)


@pytest.mark.parametrize("file", ["weights.safetensors", "pruner.json"])
def test_of_damaged_weights_the_folder_to_delete_is_named_and_training_works_without_it(
    home, tmp_path, trained, capsys, file
):
    path = config(home, tmp_path, tmp_path / "run", {"name": "learned_scorer", "hidden": 8})
    folder = tmp_path / "run" / "pruner" / "learned_scorer"
    shutil.copytree(trained, folder)
    (folder / file).write_bytes(b"damaged")
    assert run("train", path) == 4
    assert f"delete the whole folder {folder} and run `make train`" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert run("train", path) == 0


def test_nobody_is_told_to_train_into_a_damaged_folder_that_the_config_names(home, tmp_path, trained, named, capsys):
    copied = shutil.copytree(trained, tmp_path / "copied")
    (copied / "weights.safetensors").unlink()
    assert run("eval", config(home, tmp_path, tmp_path / "run", named | {"weights": str(copied)})) == 4
    said = capsys.readouterr().err
    assert "it is missing: copy the folder that `train` wrote again" in said and "delete" not in said
