"""Images of a step go through the language model together, and several processes share them: the gradients stay the same."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from stage2_prune import CachedModel, load_pruner
from stage2_prune.errors import PrunerMisused
from stage2_prune.training import train
from stage2_prune.training.step import accumulate_gradients, checkpointing, frozen, make_lesson
from store.questions.question import read_questions
from tests.stage2_prune.training.test_train import PRUNE, SECTION


@pytest.fixture
def opened(tiny):
    model = CachedModel.open(tiny())
    pruner = load_pruner("learned_scorer", hidden=8)
    pruner = pruner.fresh(model.session.features.spec(pruner, model.session.language.width), seed=0)
    questions = read_questions(tiny().data)
    mixed = [questions[index] for index in (0, 1, 2, 4, 5)]  # of some images one question, of others two
    (batch,) = model.session.features.reading(pruner.needs).batches([mixed])
    lessons = [make_lesson(model.session.language, question, " please" * n) for n, question in enumerate(mixed)]
    return model.session.language, pruner, batch, lessons


def gradients(opened, keep, kl_weight=0.0, at_once=1, checkpointed=False):
    language, pruner, batch, lessons = opened
    pruner.module.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with frozen(language.model), checkpointing(language.model, checkpointed):
        loss = accumulate_gradients(language, pruner, batch, lessons, keep, kl_weight, scaler, at_once)
    return loss, [parameter.grad.clone() for parameter in pruner.module.parameters()]


@pytest.mark.parametrize("kl_weight", [0.0, 0.5])
@pytest.mark.parametrize("at_once", [2, 10])
def test_images_that_go_through_the_language_model_together_give_the_gradients_of_one_after_the_other(
    opened, at_once, kl_weight
):
    for keep in (2, 7):
        loss, one_by_one = gradients(opened, keep, kl_weight)
        also, together = gradients(opened, keep, kl_weight, at_once)
        assert also.answer == pytest.approx(loss.answer, rel=1e-5)
        for ours, theirs in zip(together, one_by_one, strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_layers_that_are_computed_again_give_the_same_gradients_and_are_left_as_they_were(opened):
    language = opened[0]
    layers = [module for module in language.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    forwards: list[int] = []
    hooks = [layer.self_attn.register_forward_pre_hook(lambda *_: forwards.append(1)) for layer in layers]
    _, kept = gradients(opened, 5)
    plain = len(forwards)
    _, again = gradients(opened, 5, checkpointed=True)
    assert len(forwards) == 3 * plain, "once forwards and once more in the backward pass"
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, kept, strict=True))
    assert not any(layer.training or layer.gradient_checkpointing for layer in layers)


def test_a_language_model_whose_layers_cannot_be_computed_again_is_refused():
    with pytest.raises(PrunerMisused, match="Linear has none"), checkpointing(torch.nn.Linear(1, 1), True):
        pass


def test_how_the_loss_is_computed_is_no_other_training_unless_it_can_change_bits(tiny, tmp_path):
    def wanted(**section):
        return tiny(run_dir=str(tmp_path), train=SECTION | {"epochs": 0} | section, prune=PRUNE)

    first = train.run(wanted())
    assert not {"train.images_at_once", "train.gradient_checkpointing"} & first["identity"].keys()
    assert train.run(wanted(images_at_once=1, gradient_checkpointing=True)) == first
    assert train.run(wanted(images_at_once=4), overwrite=True)["identity"]["train.images_at_once"] == 4


@pytest.mark.timeout(300)
def test_two_processes_train_as_one(tiny, tmp_path, real_python):
    one, two = (
        tiny(run_dir=str(tmp_path / name), train=SECTION | {"batch_size": 4}, prune=PRUNE) for name in ("one", "two")
    )
    train.run(one)
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, "-m", "stage2_prune", "train", "--config", str(config)], check=True, capture_output=True)
    ours, theirs = (tmp_path / name / "pruner" / "learned_scorer" for name in ("two", "one"))
    rows = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (ours, theirs)]
    assert len(rows[0]) == len(rows[1]) > 4
    for mine, other in zip(*rows, strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        assert mine.get("accuracy") == other.get("accuracy")
    weights, expected = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    assert all(torch.allclose(weights[name], expected[name], rtol=1e-5, atol=1e-5) for name in expected)
