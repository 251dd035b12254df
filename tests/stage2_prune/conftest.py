"""A tiny experiment, extracted once: a checkpoint, images, questions and the store made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.experiment import Experiment

METHODS = ("keep_all", "keep_none", "random", "uniform_grid", "feature_norm", "cls_attention")


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The config of an experiment on what lies in `folder`; `section__field=…` or `section=…` changes it."""
    content: dict[str, Any] = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "model": {"checkpoint": str(folder / "checkpoint"), "device": "cpu"},
        "data": {
            "images": str(folder / "data" / "images"),
            "questions": str(folder / "data" / "questions.jsonl"),
        },
        "store": {"path": str(folder / "store")},
        "prune": {"methods": [{"name": name} for name in METHODS], "budgets": [8, 3], "seeds": 2},
        "eval": {"batch_size": 4, "max_new_tokens": 3, "bootstrap": 50},
    }
    for dotted, value in changes.items():
        section, _, leaf = dotted.partition("__")
        content[section] = {**content.get(section, {}), leaf: value} if leaf else value
    return content


def extract(experiment: Experiment, folder: Path) -> None:
    """Stage 1, in this process."""
    from stage1_extract.cli import group

    path = folder / "extract.yaml"
    path.write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    group.main(["extract", "--config", str(path)], standalone_mode=False)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny experiment."""
    from tests.helpers.checkpoints import tiny_llava
    from tests.helpers.data import tiny_questions

    folder = tmp_path_factory.mktemp("tiny")
    tiny_llava(folder / "checkpoint")
    tiny_questions(folder / "data")
    extract(Experiment.model_validate(settings(folder)), folder)
    return folder


@pytest.fixture
def tiny(home: Path, tmp_path: Path) -> Callable[..., Experiment]:
    """The tiny experiment with a run directory of its own; keyword arguments change it, as in `settings`."""

    def make(**changes: Any) -> Experiment:
        return Experiment.model_validate(settings(home, **{"run_dir": str(tmp_path / "run"), **changes}))

    return make
