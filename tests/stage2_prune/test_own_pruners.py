"""Methods of a user, from a path and from an entry point, through the commands; families and towers likewise."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from configs.cli import run_to_exit_code
from configs.files.source_code import code_digest
from stage1_extract.cli import group as stage1
from stage2_prune import load_pruner
from stage2_prune.cli import group
from tests.helpers.distributions import install
from tests.stage2_prune.conftest import settings

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "my_pruner.py"
SCORER = """
from dataclasses import dataclass

import torch
from torch import nn

from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import TrainedPruner


@dataclass(frozen=True)
class Scorer(TrainedPruner):
    needs = frozenset({"raw"})

    def build(self, spec):
        return nn.Linear(spec.shapes["raw"][-1], 1)

    def scores(self, tokens):
        return torch.stack([self.module(raw.float())[:, 0] for raw in tokens.arrays["raw"]])

    def select(self, tokens, keep):
        return top_k(self.scores(tokens), keep)

    def soft(self, tokens, keep):
        return soft_top_k(self.scores(tokens), keep, 0.1)
"""
TRAIN = {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 12, "val_keep": 4}


def run(command, path, *flags):
    return run_to_exit_code(lambda: group.main([command, "--config", str(path), *flags], standalone_mode=False))


@pytest.fixture
def config(home, tmp_path):
    """Write a config beside the user's files; sections are given as keyword arguments."""

    def write(**changes):
        content = settings(home, run_dir=str(tmp_path / "run"), train=TRAIN, **changes)
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    shutil.copy(EXAMPLE, tmp_path / "my_pruner.py")
    return write


def methods(*named, **changes):
    return {"methods": list(named), "budgets": [4], **changes}


def test_a_file_is_evaluated_by_its_path_and_results_call_it_by_its_name(config, tmp_path, capsys):
    path = config(prune=methods("keep_all", {"name": "my_pruner.py", "attraction": 0.5}))
    assert run("eval", path) == 0
    assert "| my_pruner |" in capsys.readouterr().out
    assert (tmp_path / "run/eval/predictions/my_pruner-4-original.jsonl").is_file()
    cells = json.loads((tmp_path / "run/eval/cells.json").read_text())
    identity = cells["my_pruner-4-original"]["identity"]
    assert identity["pruner"] == "my_pruner" and identity["parameters"] == {"attraction": 0.5}
    assert identity["code_with_imports"] == code_digest(tmp_path / "my_pruner.py")


def test_predictions_of_a_file_that_was_edited_are_refused(config, tmp_path, capsys):
    path = config(prune=methods("my_pruner.py"))
    assert run("eval", path) == 0
    with (tmp_path / "my_pruner.py").open("a") as file:
        file.write("# edited\n")
    code_digest.cache_clear()
    assert run("eval", path) == 2
    assert "the predictions of my_pruner-4-original" in capsys.readouterr().err


def test_a_trained_file_is_trained_saved_loaded_and_served_to_another_run_by_another_label(config, tmp_path):
    (tmp_path / "scorer.py").write_text(SCORER)
    assert run("train", config(prune=methods("scorer.py")), "--train.pruner", "scorer") == 0
    folder = tmp_path / "run" / "pruner" / "scorer"
    assert load_file(folder / "weights.safetensors").keys() == {"weight", "bias"}
    assert json.loads((folder / "pruner.json").read_text())["pruner"] == "scorer"
    assert run("eval", config(prune=methods("scorer.py"))) == 0
    again = {"name": "scorer.py", "label": "again", "weights": str(folder)}
    path = config(prune=methods(again))
    assert run("eval", path, "--run-dir", str(tmp_path / "other")) == 0
    answers = [folder / "eval/predictions" for folder in (tmp_path / "run", tmp_path / "other")]
    first, second = (json.loads(next(each.iterdir()).read_text().splitlines()[0]) for each in answers)
    assert first["prediction"] == second["prediction"]


def test_two_methods_of_one_name_need_a_label(config, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "other" / "my_pruner.py")
    two = ["my_pruner.py", "other/my_pruner.py"]
    for command in ("eval", "sweep"):
        assert run(command, config(prune=methods(*two), sweep={"methods": "configured"})) == 2
        assert "are both called my_pruner: give one of them a `label`" in capsys.readouterr().err
    assert run("eval", config(prune=methods(two[0], {"name": two[1], "label": "mine_2"}))) == 0
    assert "| mine_2 " in capsys.readouterr().out


def test_a_sweep_and_its_workers_a_picture_and_an_analysis_take_a_path(config, tmp_path):
    sweep = {
        "methods": ["my_pruner.py", "keep_all"],
        "rounds": 1,
        "workers": 2,
        "vary": {"my_pruner.attraction": [0, 1]},
    }
    path = config(prune=methods("my_pruner.py"), sweep=sweep)
    assert run("sweep", path) == 0
    rows = json.loads((tmp_path / "run/sweep/summary.json").read_text())["results"]
    assert {row["label"] for row in rows} == {"keep_all", "my_pruner", "my_pruner@attraction=1.0"}
    assert {row["method"] for row in rows} == {"keep_all", "my_pruner"}
    assert run("analyse", path) == 0
    flags = ["image_002.png", "--methods", str(tmp_path / "my_pruner.py"), "--out", str(tmp_path / "shown.png")]
    assert run("show", path, *flags) == 0 and (tmp_path / "shown.png").is_file()


def test_parity_runs_with_a_file_as_its_scorer(config, tmp_path, capfd):
    assert run("parity", config(prune=methods("my_pruner.py")), "--limit", "2") == 0
    assert json.loads((tmp_path / "run" / "parity.json").read_text())["scored_by"]["label"] == "my_pruner"


def test_an_entry_point_is_a_method_of_every_command(config, tmp_path, monkeypatch, capsys):
    site = tmp_path / "site"
    site.mkdir()
    install(site, "my-methods", {"of_mine": EXAMPLE.read_text()}, pruners={"farthest": "of_mine"})
    monkeypatch.syspath_prepend(site)
    try:
        assert run("eval", config(prune=methods("farthest"))) == 0
        assert "| farthest " in capsys.readouterr().out
        assert run_to_exit_code(lambda: group.main(["pruners"], standalone_mode=False)) == 0
        assert "| farthest " in capsys.readouterr().out
        assert load_pruner("farthest", attraction=2).parameters() == {"attraction": 2}
    finally:
        sys.modules.pop("of_mine")


def test_a_pruner_from_a_path_is_made_in_python(tmp_path, monkeypatch):
    shutil.copy(EXAMPLE, tmp_path / "my_pruner.py")
    monkeypatch.chdir(tmp_path)
    assert load_pruner("my_pruner.py", attraction=1).parameters() == {"attraction": 1}


TOWER = """
from stage1_extract.towers.clip import Clip

class Mine(Clip):
    model_types = frozenset({"clip_vision_model", "pixtral"})
"""
LANGUAGE = """
from stage2_prune.families.llava import Llava

class Mine(Llava):
    pass
"""
VISION = """
from stage1_extract.families.llava import Llava

class Mine(Llava):
    pass
"""


def test_families_and_a_tower_from_paths_make_the_same_store_and_the_same_answers(config, home, tmp_path, capsys):
    for name, text in (("tower", TOWER), ("vision", VISION), ("language", LANGUAGE)):
        (tmp_path / f"{name}.py").write_text(text)
    model = settings(home)["model"] | {
        "tower": "tower.py", "vision_family": "vision.py", "language_family": "language.py",
    }  # fmt: skip
    path = config(model=model, store={"path": str(tmp_path / "store")}, prune=methods("keep_all", "my_pruner.py"))
    arguments = ["extract", "--config", str(path)]
    assert run_to_exit_code(lambda: stage1.main(arguments, standalone_mode=False)) == 0
    verify = ["verify", str(tmp_path / "store")]
    assert run_to_exit_code(lambda: stage1.main(verify, standalone_mode=False)) == 2
    assert (
        "config.yaml names" in (said := capsys.readouterr().err) and "run no code that a store's config names" in said
    )
    typed = ["--model.tower", str(tmp_path / "tower.py"), "--model.vision-family", str(tmp_path / "vision.py")]
    assert run_to_exit_code(lambda: stage1.main([*verify, *typed], standalone_mode=False)) == 0
    assert run_to_exit_code(lambda: stage1.main([*verify, "--config", str(path)], standalone_mode=False)) == 0
    (tmp_path / "tower.py").write_text(TOWER + "\n\nEDITED = 1\n")
    assert run_to_exit_code(lambda: stage1.main([*arguments, "--append"], standalone_mode=False)) == 4
    assert "tower_code: expected " in capsys.readouterr().err
    (tmp_path / "tower.py").write_text(TOWER)
    assert run("eval", path) == 0
    assert run("eval", config(prune=methods("keep_all", "my_pruner.py")), "--run-dir", str(tmp_path / "other")) == 0
    mine, built_in = (tmp_path / each / "eval/table.md" for each in ("run", "other"))
    assert [line.split("|")[4] for line in mine.read_text().splitlines() if "| my_pruner |" in line] == [
        line.split("|")[4] for line in built_in.read_text().splitlines() if "| my_pruner |" in line
    ]


def test_a_chosen_family_or_tower_of_another_type_is_refused(config, home, tmp_path, capsys):
    (tmp_path / "language.py").write_text(LANGUAGE + '    model_types = frozenset({"qwen"})\n')
    model = settings(home)["model"] | {"language_family": "language.py"}
    assert run("eval", config(model=model)) == 2
    assert "expected a family for 'llava'" in capsys.readouterr().err
    model = settings(home)["model"] | {"tower": "siglip"}
    path = config(model=model, store={"path": str(tmp_path / "store")})
    arguments = ["extract", "--config", str(path)]
    assert run_to_exit_code(lambda: stage1.main(arguments, standalone_mode=False)) == 2
    assert "expected a tower for 'clip_vision_model', siglip serves" in capsys.readouterr().err


def test_a_published_language_family_is_known_to_stage_1_without_being_imported(tmp_path, monkeypatch):
    from stage1_extract.find_family import stage2_families

    install(tmp_path, "my-models", {}, language_families={"smolvlm": "no_such_module"})
    before = stage2_families()
    monkeypatch.syspath_prepend(tmp_path)
    assert stage2_families() == before | {"smolvlm"}
