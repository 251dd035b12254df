"""A whole training: resumed to the bit, chosen on validation, reaching nothing but the pruner."""

import json

import pytest
import torch
from safetensors.torch import load_file

from stage2_prune.errors import OtherRun, PrunerMisused
from stage2_prune.pruners.learned_scorer import LearnedScorer
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.training import train, trainer

SECTION = {"epochs": 2, "batch_size": 2, "min_keep": 2, "max_keep": 12, "val_keep": 4, "learning_rate": 0.01}
PRUNE = {"methods": [{"name": "learned_scorer", "hidden": 8}], "budgets": [4]}


@pytest.fixture
def wanted(tiny):
    def make(run_dir, **section):
        return tiny(run_dir=str(run_dir), train=SECTION | section, prune=PRUNE)

    return make


def files(run_dir):
    folder = run_dir / "pruner" / "learned_scorer"
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "log.jsonl")}


class Killed(Exception):
    pass


@pytest.mark.parametrize("steps", [1, 4])
def test_fault_37_an_interrupted_training_resumes_to_the_same_weights_and_the_same_log(
    wanted, tmp_path, monkeypatch, steps
):
    train.run(wanted(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "SAVE_SECONDS", -1.0)  # a state after every step
        taken, step = [], trainer.Trainer._step

        def until_killed(self, *arguments):
            if len(taken) == steps:
                raise Killed
            taken.append(1)
            return step(self, *arguments)

        patched.setattr(trainer.Trainer, "_step", until_killed)
        with pytest.raises(Killed):
            train.run(wanted(tmp_path / "killed"))
    assert not (tmp_path / "killed/pruner/learned_scorer/pruner.json").exists()
    train.run(wanted(tmp_path / "killed"))
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_zero_epochs_save_the_freshly_seeded_module(wanted, tmp_path):
    record = train.run(wanted(tmp_path, epochs=0))
    saved = load_file(tmp_path / "pruner/learned_scorer/weights.safetensors")
    spec = ModuleSpec((4, 4), {"cls_attention": (4, 16), "raw": (16, 32)}, 48)
    fresh = LearnedScorer(hidden=8).fresh(spec, seed=0).module.state_dict()
    assert record["best_epoch"] == 0 and saved.keys() == fresh.keys()
    assert all(torch.equal(saved[name], fresh[name]) for name in fresh)


def test_training_changes_the_pruner_and_logs_every_step_and_epoch_with_a_curve(wanted, tmp_path):
    record = train.run(wanted(tmp_path, kl_weight=0.5))
    folder = tmp_path / "pruner" / "learned_scorer"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    assert len(steps) == 2 * 3 and all(2 <= row["keep"] <= 12 and row["kl"] >= 0 for row in steps)
    assert [row["epoch"] for row in rows if row["event"] == "validation"] == [0, 1, 2]
    assert record["val_accuracies"] == [row["accuracy"] for row in rows if row["event"] == "validation"]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG") and not (folder / "state.safetensors").exists()


def test_the_language_model_is_not_touched_and_its_flags_are_as_before(wanted, tmp_path, monkeypatch):
    seen, opened = [], train.open_session

    def watched(*arguments):
        seen.append(opened(*arguments))
        return seen[-1]

    monkeypatch.setattr(train, "open_session", watched)
    before = {
        name: tensor.clone() for name, tensor in opened(wanted(tmp_path), {"raw"}).language.model.state_dict().items()
    }
    train.run(wanted(tmp_path))
    model = seen[0].language.model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in model.parameters())


def test_a_finished_training_is_left_alone_and_one_of_other_settings_is_not_overwritten_silently(wanted, tmp_path):
    train.run(wanted(tmp_path, epochs=1))
    before = files(tmp_path)
    train.run(wanted(tmp_path, epochs=1))
    assert files(tmp_path) == before
    with pytest.raises(OtherRun, match=r"train\.learning_rate 0\.01, now 0\.1") as caught:
        train.run(wanted(tmp_path, epochs=1, learning_rate=0.1))
    assert caught.value.exit_code == 2
    train.run(wanted(tmp_path, epochs=1, learning_rate=0.1), overwrite=True)
    assert files(tmp_path) != before


def test_a_pruner_without_weights_cannot_be_trained(tiny):
    with pytest.raises(PrunerMisused, match="random"):
        train.run(tiny(train=SECTION | {"pruner": "random"}))


def test_questions_of_the_test_split_change_nothing_in_a_training(wanted, tmp_path, home):
    train.run(wanted(tmp_path / "with"))
    rows = [json.loads(line) for line in (home / "data" / "questions.jsonl").read_text().splitlines()]
    others = tmp_path / "without.jsonl"
    others.write_text("".join(json.dumps(row) + "\n" for row in rows if row["split"] != "test"))
    data = wanted(tmp_path / "without").data.model_copy(update={"questions": others})
    train.run(wanted(tmp_path / "without").model_copy(update={"data": data}))
    assert files(tmp_path / "with") == files(tmp_path / "without")
