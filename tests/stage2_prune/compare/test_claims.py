"""Claims about trained methods: chosen on the validation split, shown on the test split, corrected as one family."""

import json

import numpy as np
import pytest

from configs.experiment import Experiment
from stage2_prune.compare import claims
from stage2_prune.compare.significance import holm
from stage2_prune.errors import NotComparable, ResultsMissing
from stage2_prune.evaluation.intervals import interval, seeds_and_images
from stage2_prune.sweep import run as sweep
from stage2_prune.training import train
from tests.stage2_prune.conftest import settings

METHODS = ["keep_all", "feature_norm", "uniform_grid", {"name": "learned_scorer", "hidden": 8}]


@pytest.fixture(scope="module")
def wanted(home, tmp_path_factory):
    """A config with a trained method, after sweeps over both splits."""
    folder = tmp_path_factory.mktemp("claims")
    experiment = Experiment.model_validate(
        settings(
            home,
            run_dir=str(folder),
            prune={"methods": METHODS, "budgets": [4, 2]},
            train={"epochs": 1, "batch_size": 4, "min_keep": 1, "max_keep": 8, "val_keep": 2},
            sweep={"methods": "configured", "workers": 1, "rounds": 1},
            claims={"ours": "learned_scorer", "budgets": [4, 2]},
        )
    )
    train.run(experiment)
    for split in ("val", "test"):
        sweep.run(experiment.model_copy(update={"eval": experiment.eval.model_copy(update={"split": split})}))
    return experiment


def test_a_sweep_over_another_split_lies_beside_that_over_the_test_split(wanted):
    read = {name: json.loads((wanted.run_dir / name / "summary.json").read_text()) for name in ("sweep", "sweep-val")}
    assert {name: summary["split"] for name, summary in read.items()} == {"sweep": "test", "sweep-val": "val"}


def test_every_claim_is_a_test_of_one_family_and_its_methods_are_the_best_of_the_validation_split(wanted):
    outcome = claims.run(wanted)
    rows = outcome["claims"]
    assert [(row["budget"], row["role"]) for row in rows] == [
        (b, role) for b in (4, 2) for role in ("best trained", "ours")
    ]
    assert [row["holm_p"] for row in rows] == holm([row["by_image_p"] for row in rows])
    val = {
        (row["pruner"], row["keep"]): row["accuracy"]
        for row in json.loads((wanted.run_dir / "sweep-val" / "summary.json").read_text())["results"]
    }
    test = {
        (row["pruner"], row["keep"]): row["accuracy"]
        for row in json.loads((wanted.run_dir / "sweep" / "summary.json").read_text())["results"]
    }
    for row in rows:
        free = ("feature_norm", "uniform_grid")
        assert val[row["against"], row["budget"]] == max(val[name, row["budget"]] for name in free)
        difference = test[row["method"], row["budget"]] - test[row["against"], row["budget"]]
        assert row["method"] == "learned_scorer@hidden=8" and row["difference"] == pytest.approx(difference)
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
        assert row["claimed"] == (row["holm_p"] < outcome["level"] and set(row["signs"]) in ({1}, {-1}))
    assert outcome["above_ours"] == []
    claims.write(wanted, outcome)
    assert json.loads(claims.file_of(wanted).read_text()) == outcome
    assert claims.as_text(outcome).count("| best trained |") == 2


def test_a_split_without_a_sweep_and_a_budget_without_a_trained_method_are_said(wanted, tmp_path):
    with pytest.raises(ResultsMissing, match=r"sweep over the val split in .*sweep-val.*--eval\.split val"):
        claims.run(wanted.model_copy(update={"run_dir": tmp_path}))
    unknown = wanted.claims.model_copy(update={"ours": "nobody"})
    with pytest.raises(NotComparable, match=r"claims\.ours: expected one method nobody at 4 tokens"):
        claims.run(wanted.model_copy(update={"claims": unknown}))
    other = wanted.claims.model_copy(update={"budgets": (3,)})
    with pytest.raises(NotComparable, match=r"a training-free method at 3 tokens .*claims\.budgets"):
        claims.run(wanted.model_copy(update={"claims": other}))


def test_the_interval_over_seeds_and_images_is_that_over_images_where_seeds_agree_and_wider_where_they_differ():
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(40), 5)
    right = (rng.random(200) < 0.6).astype(float)
    low, high = seeds_and_images(np.stack([right, right, right]), image, 2000, seed=3)
    assert (low, high) == pytest.approx(interval(right, image, 2000, seed=3))
    apart = np.stack([right * 0.5, right, right * 0.7 + 0.3])
    wide = seeds_and_images(apart, image, 2000, seed=3)
    narrow = interval(apart.mean(0), image, 2000, seed=3)
    assert wide[1] - wide[0] > narrow[1] - narrow[0] and wide[0] <= apart.mean() <= wide[1]
