"""Methods that read side arrays, questions or the projector, on what stage 1 really stores and stage 2 really reads."""

import shutil

import pytest
import torch

from configs import plugin
from configs.experiment import Experiment
from stage1_extract.encoding.arrays import NAMES
from stage1_extract.extract import extract as extract_stage
from stage2_prune import pruners
from stage2_prune.evaluation import evaluate
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.session.features import Features
from stage2_prune.session.prune_batch import prune_batch
from stage2_prune.session.session import open_session
from store.questions.question import read_questions
from store.questions.splits import select
from store.reading.reader import FeatureStore
from tests.helpers.clip import clip_checkpoint
from tests.stage2_prune.conftest import extract, settings

METHODS = [
    "average_pooling",
    "cd_pruner",
    "hi_prune",
    "mm_tok",
    "nuwa",
    "pru_merge",
    "random_inside",
    "received_attention",
    "trim",
    "vision_trim",
    "vision_zip",
    "vscan",
    "zoo_prune",
]


@pytest.fixture(scope="module")
def experiment(home, tmp_path_factory):
    """The tiny experiment with a store of all arrays and with these methods."""
    folder = tmp_path_factory.mktemp("side_arrays")
    changes = {
        "run_dir": str(folder / "run"),
        "model__clip": str(clip_checkpoint(folder / "clip", home / "checkpoint")),
        "store": {"path": str(folder / "store"), "arrays": list(NAMES)},
        "prune__methods": [{"name": name} for name in METHODS],
        "prune__budgets": [5],
    }
    found = Experiment.model_validate(settings(home, **changes))
    extract(found, folder)
    return found


def test_every_method_answers_from_the_store(experiment):
    results = evaluate.run(experiment)["results"]
    assert sorted(row["pruner"] for row in results) == METHODS
    assert {row["tokens_per_layer_mean"] for row in results} == {5}


@pytest.mark.parametrize("name", METHODS)
def test_every_budget_is_kept_on_stored_arrays(experiment, name):
    pruner = plugin.find(pruners, name, Pruner)()
    session = open_session(experiment, pruner.needs)
    questions = select(read_questions(experiment.data), experiment.data, "test")
    for batch in session.features.batches([questions[:4]]):
        for keep in range(1, session.features.patches + 1):
            of, pruned = prune_batch(pruner, batch, keep, session.reader)
            assert pruned.kept == keep and len(of.questions) == 4


def test_methods_that_decide_by_themselves_answer_with_as_many_tokens_as_they_report(experiment, tmp_path):
    deciding = [{"name": name, "count": "outliers"} for name in ("pru_merge", "trim")]
    section = experiment.prune.model_copy(update={"methods": ()}).model_dump() | {"methods": deciding}
    content = experiment.model_dump(mode="json") | {"prune": section, "run_dir": str(tmp_path / "run")}
    results = evaluate.run(Experiment.model_validate(content))["results"]
    assert [row["pruner"] for row in results] == ["pru_merge", "trim"]
    assert all(1 <= row["tokens_per_layer_mean"] < 16 for row in results)


def test_a_caller_can_report_which_tower_layers_were_meant(experiment):
    layers = FeatureStore.open(experiment.store_location).arrays["received_attention"].shape[0]
    classes = plugin.find_all(pruners, Pruner)
    resolved = {name: classes[name]().tower_layers(layers) for name in METHODS}
    assert {name for name, found in resolved.items() if found} == {
        "hi_prune",
        "received_attention",
        "vision_trim",
        "vscan",
    }
    assert all(0 <= layer < layers for found in resolved.values() for layer in found.values())


def test_a_question_is_excluded_only_where_an_array_that_is_needed_lacks_its_image(home, tmp_path):
    shutil.copytree(home / "data", tmp_path / "data")
    data = {"images": str(tmp_path / "data" / "images"), "questions": str(tmp_path / "data" / "questions.jsonl")}
    changes = {"data": data, "store": {"path": str(tmp_path / "store")}, "extract": {"max_failures": 1}}
    found = Experiment.model_validate(settings(tmp_path, model__checkpoint=str(home / "checkpoint"), **changes))
    extract(found, tmp_path)
    questions = select(read_questions(found.data), found.data, "test")
    (found.data.images / questions[0].image).unlink()
    extract_stage(found.with_arrays([*found.store.arrays, "keys"]), overwrite=False, append=True)
    store = FeatureStore.open(found.store_location)
    kept, excluded = Features(store, {"cls_attention"}, torch.device("cpu")).answerable(questions)
    assert kept == questions and excluded == []
    kept, excluded = Features(store, {"keys"}, torch.device("cpu")).answerable(questions)
    about = {question.question_id for question in questions if question.image == questions[0].image}
    assert {one.question_id: one.reason for one in excluded} == dict.fromkeys(about, "missing_file")
    assert len(kept) == len(questions) - len(about)
