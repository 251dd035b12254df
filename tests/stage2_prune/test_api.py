"""Everything that the commands do, from Python: the names that the packages export."""

import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import jaxtyping
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from configs.errors import ConfigError, EncodeOnceError, WrongCall
from stage2_prune.evaluation import evaluate
from stage2_prune.pruning.pruner import BudgetKind, Pruner
from stage2_prune.pruning.tokens import Beside, Pruned
from tests.stage2_prune.test_evaluate import asked, rows

PACKAGES = ("configs", "store", "stage1_extract", "stage2_prune")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_is_there_and_has_a_docstring(package):
    module = import_module(package)
    assert module.__all__
    for name in module.__all__:
        assert getattr(module, name).__doc__, name


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_no_framework(package, tmp_path):
    script = f"import sys, {package}\nassert not {{'torch', 'transformers', 'zarr'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_a_run_from_python_gives_what_the_commands_give(tiny, tmp_path):
    from stage1_extract import run_extraction
    from stage2_prune import compare_runs, run_evaluation, run_parity, run_training

    experiment = tiny(
        run_dir=str(tmp_path / "api"), store={}, prune__methods=[{"name": "keep_all"}, {"name": "learned_scorer"}],
        prune__budgets=[4], train={"epochs": 1, "min_keep": 2, "max_keep": 8, "val_keep": 4},
    )  # fmt: skip
    store = run_extraction(experiment)
    assert store.path == tmp_path / "api" / "store" and not store.missing_shards
    assert 0 <= run_training(experiment)["val_accuracy"] <= 1
    summary = run_evaluation(experiment)
    assert summary == evaluate.run(experiment)
    assert [row["pruner"] for row in summary["results"]] == ["keep_all", "learned_scorer"]
    assert run_parity(experiment, limit=2)["identical"] is True
    assert compare_runs([tmp_path / "api"])["pairs"]


def test_settings_are_laid_over_an_experiment_a_file_or_a_packaged_config(tiny):
    from configs import load_experiment

    assert load_experiment("demo", prune__budgets=[32], run_dir="x").prune.budgets == (32,)
    assert load_experiment(tiny(), prune__budgets=[3]).prune.budgets == (3,)
    assert load_experiment(tiny()) == tiny()
    with pytest.raises(ConfigError, match=r"prune\.budgetz: unknown key"):
        load_experiment(tiny(), prune__budgetz=[3])
    with pytest.raises(ConfigError, match="prune.budgetz"):
        load_experiment("demo", prune__budgetz=[3])


def test_features_are_read_by_the_names_of_images(tiny):
    from store import FeatureStore, read_features

    experiment = tiny()
    store = FeatureStore.open(experiment.store_location)
    images = [question.image for question in asked(experiment)[:2]]
    raw = read_features(store, images, "raw")
    rows = [store.ids.row_of_name(image) for image in images]
    assert torch.equal(raw, torch.from_numpy(store.gather("raw", rows)))
    assert torch.equal(raw, read_features(str(experiment.store_location), images, "raw"))
    with pytest.raises(EncodeOnceError, match="has none called 'no.png'"):
        read_features(store, ["no.png"])


def test_a_dataset_gives_features_question_and_answer_and_collates(tiny):
    from store import FeatureStore, QuestionDataset, read_features

    experiment = tiny()
    store, questions = FeatureStore.open(experiment.store_location), asked(experiment)
    dataset = QuestionDataset(store, questions)
    features, question, answer = dataset[1]
    assert (question, answer) == (questions[1].question, questions[1].answers[0])
    assert torch.equal(features["projected"], read_features(store, [questions[1].image])[0])
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset))))
    assert batch.features["projected"].shape[0] == len(questions) == len(batch.question)
    assert not dataset.left_out


def test_a_model_answers_from_the_store_as_an_evaluation_does_and_from_features(tiny):
    from stage2_prune import CachedModel, load_pruner
    from store import read_features

    experiment = tiny(prune__methods=[{"name": "keep_all"}, {"name": "uniform_grid"}], prune__budgets=[4])
    evaluate.run(experiment)
    model = CachedModel.open(experiment)
    grid = load_pruner("uniform_grid")
    for row in rows(experiment, "uniform_grid-4-original"):
        assert model.answer(row["image"], row["question"], grid, keep=4) == row["prediction"]
    for row in rows(experiment, f"keep_all-{model.patches}-original"):
        assert model.answer(row["image"], row["question"]) == row["prediction"]
        (features,) = read_features(model.session.features.store, [row["image"]])
        assert model.answer_features(features, row["question"]) == row["prediction"]


def test_one_pruner_on_one_batch_gives_indices(tiny):
    from stage2_prune import CachedModel, load_pruner

    model = CachedModel.open(tiny())
    images = [question.image for question in asked(tiny())[:3]]
    index = model.select(load_pruner("feature_norm"), images, keep=5)
    assert index.shape == (3, 5) and (index.diff(dim=-1) > 0).all()
    with pytest.raises(EncodeOnceError, match="expected `keep` between 1 and"):
        model.select(load_pruner("feature_norm"), images, keep=0)
    with pytest.raises(EncodeOnceError, match="prunes inside it"):
        model.select(load_pruner("fastv"), images, keep=4)
    with pytest.raises(ConfigError, match="did you mean"):
        load_pruner("feature_nrm")
    assert Path(load_pruner("div_prune").file).stem == "div_prune"


def test_a_method_may_be_named_in_place_of_a_pruner(tiny):
    from stage2_prune import CachedModel, load_pruner

    model, question = CachedModel.open(tiny()), asked(tiny())[0]
    grid = load_pruner("uniform_grid")
    answer = model.answer(question.image, question.question, grid, keep=4)
    assert model.answer(question.image, question.question, "uniform_grid", keep=4) == answer
    kept = model.select("uniform_grid", [question.image], keep=4)
    assert torch.equal(kept, model.select(grid, [question.image], keep=4))
    with pytest.raises(ConfigError, match="did you mean"):
        model.answer(question.image, question.question, "uniform_gird", keep=4)


def test_a_budget_without_a_pruner_and_a_name_in_place_of_a_list_of_names_are_refused(tiny):
    from stage2_prune import CachedModel
    from store import read_features

    model, question = CachedModel.open(tiny()), asked(tiny())[0]
    with pytest.raises(WrongCall, match="expected a pruner that keeps 8 visual tokens, got none") as caught:
        model.answer(question.image, question.question, keep=8)
    assert caught.value.exit_code == 2
    with pytest.raises(WrongCall, match="expected a list of names of images, got the string 'image_002.png'"):
        model.select("uniform_grid", "image_002.png", keep=4)
    with pytest.raises(WrongCall, match="expected a list of names of images, got the string"):
        read_features(model.session.features.store, "image_002.png")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (torch.zeros(16, 40), r"a tensor of floats \(token, 48\), got \(16, 40\) of torch.float32: project it"),
        (torch.zeros(16, 96), r"got \(16, 96\) of torch.float32: project it"),
        (torch.zeros(1, 16, 48), r"got \(1, 16, 48\) of torch.float32: give one image at a time"),
        (torch.zeros(48), r"got \(48,\) of torch.float32: give it one axis of tokens"),
        (torch.zeros(16, 48, dtype=torch.long), r"got \(16, 48\) of torch.int64: convert it"),
        (np.zeros((16, 48), np.float32), "got a ndarray: torch.as_tensor makes"),
        ([[0.0] * 48], "got a list: torch.as_tensor makes"),
    ],
)
def test_features_that_are_no_visual_tokens_of_one_image_are_refused(tiny, monkeypatch, given, complaint):
    from stage2_prune import CachedModel

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of shapes
    with pytest.raises(WrongCall, match=complaint):
        CachedModel.open(tiny()).answer_features(given, "what color is it ?")


def test_a_worker_that_imports_an_unguarded_script_is_told_to_guard_it(tiny, monkeypatch, capsys):
    from stage1_extract import run_extraction
    from stage2_prune import run_sweep

    script = ModuleType("__mp_main__")
    script.__file__ = "mine.py"
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    for run in (run_sweep, run_extraction):
        with pytest.raises(SystemExit) as caught:
            run(tiny())
        assert caught.value.code == 2 and "each worker imports mine.py" in capsys.readouterr().err


@dataclass(frozen=True)
class FirstThree(Pruner):
    """Keeps the first three patches, and says so by a count: the rest of its index is padding."""

    budget: ClassVar[BudgetKind] = "adaptive"

    def prune(self, tokens, keep):
        images = len(tokens.image_ids)
        return Pruned(torch.arange(keep).expand(images, -1), counts=torch.full((images,), 3))


@dataclass(frozen=True)
class First(Pruner):
    """Keeps the first patches."""

    def select(self, tokens, keep):
        return torch.arange(keep).expand(len(tokens.image_ids), -1)


def test_what_a_method_that_counts_for_itself_calls_padding_is_not_shown_to_the_model(tiny, monkeypatch):
    from stage2_prune import CachedModel
    from stage2_prune.session import ask

    model, shown = CachedModel.open(tiny()), []
    generate = ask.generate
    monkeypatch.setattr(ask, "generate", lambda *given: shown.append(given[1].slots.sum().item()) or generate(*given))
    question = asked(tiny())[0]
    counted = model.answer(question.image, question.question, FirstThree())
    assert counted == model.answer(question.image, question.question, First(), keep=3) and shown == [3, 3]


def test_images_are_selected_from_alike_together_and_alone_also_where_one_is_named_twice(tiny):
    from stage2_prune import CachedModel, load_pruner

    model, pruner = CachedModel.open(tiny()), load_pruner("random")
    first, *_, last = sorted({question.image for question in asked(tiny())})
    together = model.select(pruner, [first, last, first], keep=5)
    assert torch.equal(together[0], together[2])
    for image, index in zip([first, last], together, strict=False):
        assert torch.equal(model.select(pruner, [image], keep=5)[0], index)
    with pytest.raises(EncodeOnceError, match="expected a question for SparseQuestion"):
        model.select(SparseQuestion(), [first], keep=5)


@dataclass(frozen=True)
class SparseQuestion(First):
    """Reads the question."""

    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})
