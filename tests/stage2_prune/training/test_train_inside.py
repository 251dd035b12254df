"""Methods inside the language model are trained, evaluated and swept over by the commands, and resumed to the bit."""

import json

import pytest

from stage2_prune.errors import Infeasible
from stage2_prune.evaluation import evaluate
from stage2_prune.sweep import run as sweep
from stage2_prune.training import train, trainer

SECTION = {"epochs": 2, "batch_size": 2, "min_keep": 9, "max_keep": 15, "val_keep": 10, "learning_rate": 0.01}
METHODS = {
    "layer_pruner": {"name": "layer_pruner", "hidden": 8},
    "asking": {"name": "layer_pruner", "hidden": 8, "asking": True, "layers": [16]},
    "twig_vlm": {"name": "twig_vlm", "rank": 4},
    "dynamic_llava": {"name": "dynamic_llava", "width": 16, "heads": 2},
    "lv_pruning": {"name": "lv_pruning", "width": 16, "heads": 2},
}


@pytest.fixture(params=METHODS)
def wanted(tiny, request):
    method = METHODS[request.param]

    def make(run_dir, **section):
        own = SECTION | {"pruner": method["name"]} | section
        prune = {"methods": [method], "budgets": [10, 5], "match": section.pop("match", "mean-tokens")}
        return tiny(
            run_dir=str(run_dir), train=own, prune=prune, sweep={"methods": "configured", "workers": 1, "rounds": 1}
        )

    return make


def files(run_dir):
    (folder,) = (run_dir / "pruner").iterdir()
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "log.jsonl")}


class Killed(Exception):
    pass


def test_an_interrupted_training_inside_the_model_resumes_to_the_same_bytes(wanted, tmp_path, monkeypatch):
    train.run(wanted(tmp_path / "whole", kl_weight=0.5))
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "SAVE_SECONDS", -1.0)  # a state after every step
        taken, step = [], trainer.Trainer._step

        def until_killed(self, *arguments):
            if len(taken) == 4:
                raise Killed
            taken.append(1)
            return step(self, *arguments)

        patched.setattr(trainer.Trainer, "_step", until_killed)
        with pytest.raises(Killed):
            train.run(wanted(tmp_path / "killed", kl_weight=0.5))
    train.run(wanted(tmp_path / "killed", kl_weight=0.5))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    rows = [json.loads(line) for line in files(tmp_path / "whole")["log.jsonl"].splitlines()]
    assert all(row["kl"] >= 0 for row in rows if row["event"] == "step")


def test_a_trained_method_is_evaluated_and_swept_over_at_every_budget_that_it_meets(wanted, tmp_path):
    experiment = wanted(tmp_path, epochs=1)
    train.run(experiment)
    evaluate.run(experiment)
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    keeps = [row["keep"] for row in summary["results"]]
    before_layer_0 = experiment.prune.methods[0].parameters == {"hidden": 8}
    assert keeps == ([10, 5] if before_layer_0 else [10])
    assert len(summary["infeasible"]) == 2 - len(keeps)
    sweep.run(experiment)
    assert (tmp_path / "sweep" / "results.csv").read_text().count(experiment.prune.methods[0].name) >= len(keeps)


@pytest.mark.parametrize(
    ("method", "section", "said"),
    [
        ({"name": "layer_pruner", "layers": [16]}, {"min_keep": 3}, r"train\.min_keep to train\.max_keep: .* not 3"),
        ({"name": "layer_pruner", "layers": [16]}, {"val_keep": 3}, r"train\.val_keep: .* not 3"),
        ({"name": "twig_vlm", "wipe": 31, "layer": 1}, {"min_keep": 3}, "not 3"),
    ],
)
def test_a_budget_of_the_training_that_cannot_be_met_is_refused_at_once(tiny, tmp_path, method, section, said):
    own = SECTION | {"pruner": method["name"]} | section
    with pytest.raises(Infeasible, match=said):
        train.run(tiny(train=own, prune={"methods": [method], "budgets": [10]}))
    assert not (tmp_path / "run" / "pruner" / method["name"] / "log.jsonl").exists()
