"""Parity says which pruner scored for the mode whose decision is overridden."""

import json
import subprocess
from pathlib import Path

import pytest

from configs.experiment import Experiment
from stage1_extract.checking import reference
from stage1_extract.extract import extract
from stage2_prune.parity import run as parity
from tests.helpers.checkpoints import tiny_llava
from tests.helpers.data import tiny_questions


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder, images=3, per_image=1)
    extract(experiment(folder, ["keep_all"]), overwrite=False)
    return folder


def experiment(folder: Path, methods: list[str]) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "tiny",
            "run_dir": str(folder / "run"),
            "model": {"checkpoint": str(folder / "checkpoint"), "device": "cpu"},
            "data": {"images": str(folder / "images"), "questions": str(folder / "questions.jsonl")},
            "prune": {"methods": [{"name": name} for name in methods]},
            "train": {"val_keep": 4},
            "eval": {"max_new_tokens": 2},
        }
    )


@pytest.mark.parametrize(
    ("methods", "scored_by"),
    [
        (["keep_all"], {"label": "keep_all", "parameters": {}, "weights": None, "keep": 16}),
        (["keep_all", "cls_attention"], {"label": "cls_attention", "parameters": {}, "weights": None, "keep": 4}),
        (["keep_all", "learned_scorer"], {"label": "learned_scorer", "weights": "freshly seeded", "keep": 4}),
    ],
)
def test_parity_says_in_print_and_in_json_which_pruner_scored(home, methods, scored_by, monkeypatch, capsys):
    def here(command: list[str], **streams):
        reference.run(Path(command[-1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", here)
    assert parity.run(experiment(home, methods), limit=1, as_json_text=False) == parity.IDENTICAL
    said = capsys.readouterr().out
    assert f"soft_pruning scored by {scored_by['label']} (keep {scored_by['keep']}" in said
    assert ("freshly seeded weights" in said) == (scored_by["weights"] is not None)
    written = json.loads((home / "run" / "parity.json").read_text())["scored_by"]
    assert {key: written[key] for key in scored_by} == scored_by
