"""`read`: a trained pruner's scores over images, what it keeps that another drops, and where its answers gain and lose."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from configs.experiment import EvalSection
from stage2_prune.cli import group
from stage2_prune.compare.results import MethodResult
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation import evaluate
from stage2_prune.insight import answers, differences, maps, read
from stage2_prune.insight.differences import KeptBoth
from stage2_prune.pruners.feature_norm import FeatureNorm
from stage2_prune.pruners.random import Random
from stage2_prune.session.ask import Prediction
from stage2_prune.session.choose import choose
from stage2_prune.session.session import open_session
from stage2_prune.training import train
from store.questions.question import Question

TRAIN = {"epochs": 1, "batch_size": 4, "min_keep": 2, "max_keep": 6, "val_keep": 4, "kinds": ["color"]}
PRUNE = {"methods": ["cls_attention", "learned_scorer"], "budgets": [8, 3]}
SECTION = EvalSection(bootstrap=50)


@pytest.fixture
def trained(tiny):
    experiment = tiny(train=TRAIN, prune=PRUNE)
    train.run(experiment)
    return experiment


def prediction(name, image, kind, right):
    return Prediction(name, image, kind, ("a",), "a" if right else "b", right, None, None)


def result(label, keep, rights):
    asked = [("q0", "i0", "color"), ("q1", "i0", "count"), ("q2", "i1", "color"), ("q3", "i2", None)]
    rows = {name: prediction(name, image, kind, bool(r)) for (name, image, kind), r in zip(asked, rights, strict=True)}
    made = {"pruner": label, "keep": keep, "weights": "w"}
    return MethodResult(f"{label}-{keep}", Path(), f"{label}-{keep}", False, (rows,), (made,))


def test_a_trained_pruner_is_drawn_counted_and_judged_by_kind_and_beyond_its_training(trained, tmp_path):
    evaluate.run(trained)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(trained.model_dump(mode="json")))
    done = CliRunner().invoke(group, ["read", "--config", str(path), "--keep", "3", "--images", "2"])
    assert done.exit_code == 0, done.output
    folder = trained.run_dir / "read"
    for name in ("maps.png", "differences.png"):
        with Image.open(folder / name) as drawn:
            assert len(np.unique(np.asarray(drawn.convert("L")))) > 20
    reading = json.loads((folder / "reading.json").read_text())
    first, second = reading["counts"]
    assert (
        first["mean"] == second["mean"] and first["n"] == 6
    )  # both keep as many, so each drops as many of the other's
    assert {(row["keep"], row["kind"]) for row in reading["by_kind"]} == {
        (keep, kind) for keep in (3, 8) for kind in ("all", "color", "is")
    }
    assert [(row["keep"], row["within_trained_budgets"], row["trained_kinds"]) for row in reading["transfer"]] == [
        (8, False, ["color"]),
        (3, True, ["color"]),
    ]
    assert all(row["n_other_kinds"] == 3 for row in reading["transfer"])
    assert "8 * |" in done.stdout and "3 * |" not in done.stdout


def test_without_predictions_the_table_says_why_nothing_is_known_of_the_answers(trained):
    reading = read.run(trained, 3, "cls_attention", 1, limit=2)
    assert reading["by_kind"] == [] and "make them with" in reading["no_answers"]


def test_only_a_trained_method_of_the_config_that_selects_patches_is_read(trained, tiny):
    with pytest.raises(PrunerMisused, match="'cls_attention' is none"):
        read.run(tiny(train={"pruner": "cls_attention"}), 3, "feature_norm", 1)
    with pytest.raises(PrunerMisused, match="fastv drops tokens inside"):
        read.run(trained, 3, "fastv", 1)


def test_the_brightest_patches_of_a_score_map_are_those_that_are_kept(tiny):
    session = open_session(tiny(), {"raw"})
    question = choose(session.experiment, "test")[0]
    for batch in session.features.batches([[question]]):
        for pruner in (FeatureNorm(), Random()):
            values = maps.score_map(pruner, batch, 5, session.reader).values
            assert values.max() == 1 and values.min() == pytest.approx(0, abs=1e-6)
            kept = pruner.select(batch.tokens, 5)[0]
            assert set(values.topk(5).indices.tolist()) == set(kept.tolist())


def test_shares_of_kept_patches_by_hand():
    questions = tuple(Question(question_id=f"q{n}", image=f"i{n}", question="?") for n in range(2))
    ours = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1]]).bool()
    others = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]]).bool()
    truth = {"q0": torch.tensor([True, True, False, False])}
    found = {row["share"]: row for row in differences.counts(KeptBoth(questions, ours, others), truth, SECTION)}
    means = {name: (row["mean"], row["n"]) for name, row in found.items()}
    assert means == {
        "of what it keeps, the other drops": (0.25, 2),
        "of what the other keeps, it drops": (0.25, 2),
        "of what it alone keeps, shows what is asked about": (1.0, 1),
        "of what the other alone keeps, shows what is asked about": (0.0, 1),
        "of what is asked about, it keeps": (1.0, 1),
        "of what is asked about, the other keeps": (0.5, 1),
    }
    assert differences.shares(ours & ~others).tolist() == [0.5, 0, 0, 0]


def test_gains_by_kind_are_paired_by_question_and_budget():
    results = [result("ours", 8, [1, 1, 1, 0]), result("other", 8, [1, 0, 0, 1]), result("other", 3, [0, 0, 0, 0])]
    rows = {row["kind"]: row for row in answers.by_kind(results, "ours", "other", SECTION)}
    assert {kind: (row["gain"], row["n"]) for kind, row in rows.items()} == {
        "all": (0.25, 4),
        "color": (0.5, 2),
        "count": (1.0, 1),
    }
    assert rows["count"]["ci95"] is None and rows["color"]["ci95"] == [0, 1]


def test_a_pruner_can_be_trained_on_some_kinds_of_question_alone_and_never_on_the_test_split(tiny, tmp_path):
    record = train.run(tiny(train=TRAIN, prune=PRUNE))["identity"]
    assert record["train_questions"]["questions"] == record["val_questions"]["questions"] == 3
    assert record["train.kinds"] == ["color"]
    every = train.run(tiny(train=TRAIN | {"kinds": None, "epochs": 0}, prune=PRUNE, run_dir=str(tmp_path / "all")))
    assert (
        "train.kinds" not in every["identity"]
    )  # as before this field was there: earlier trainings keep their identity
    with pytest.raises(PrunerMisused, match=r"train.kinds: .*\(color, is\), 'shape' is not among them"):
        train.run(tiny(train=TRAIN | {"kinds": ["shape"]}, prune=PRUNE))
