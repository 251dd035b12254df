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
from stage2_prune.errors import MemoryTooSmall, PrunerMisused
from stage2_prune.training import packed, train, trainer
from stage2_prune.training import ranks as ranks_module
from stage2_prune.training.gradients import Aim, accumulate_gradients, joined_loss
from stage2_prune.training.ranks import LAUNCHED, Ranks, joined_ranks, prints
from stage2_prune.training.step import checkpointing, frozen, make_lesson
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
    return model.session, pruner, batch, lessons


def gradients(opened, keep, kl_weight=0.0, at_once=1, checkpointed=False):
    session, pruner, batch, lessons = opened
    language, aim = session.language, Aim(keep, kl_weight=kl_weight)
    pruner.module.zero_grad()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with frozen(language.model), checkpointing(language.model, checkpointed):
        losses = accumulate_gradients(session.reader, pruner, batch, lessons, aim, scaler, at_once=at_once)
        loss = joined_loss(losses, pruner, aim, batch)
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
    language = opened[0].language
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


def test_the_padding_of_a_gpu_changes_no_gradient(opened, monkeypatch):
    loss, expected = gradients(opened, 5)
    monkeypatch.setattr(packed, "padded_size", lambda longest, device: longest + 5)
    also, padded = gradients(opened, 5)
    assert also.answer == pytest.approx(loss.answer, rel=1e-5)
    for ours, theirs in zip(padded, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_sequences_are_padded_on_a_gpu_alone():
    assert [packed.padded_size(longest, torch.device("cuda")) for longest in (8, 9, 700)] == [8, 16, 704]
    assert packed.padded_size(9, torch.device("cpu")) == 9


def test_a_step_that_memory_does_not_carry_is_computed_again_with_half_as_many_images_at_once(
    tiny, tmp_path, monkeypatch
):
    def wanted(name, **section):
        return tiny(run_dir=str(tmp_path / name), train=SECTION | {"epochs": 1, "batch_size": 4} | section, prune=PRUNE)

    tried = []

    def small(*arguments):
        tried.append(arguments[7])
        if arguments[7] > 1:
            accumulate_gradients(*arguments)  # a part of the gradients is there when memory runs out
            raise torch.OutOfMemoryError
        return accumulate_gradients(*arguments)

    expected = train.run(wanted("enough"))
    monkeypatch.setattr(trainer, "accumulate_gradients", small)
    monkeypatch.setattr(trainer, "images_at_once", lambda *_: 4)
    assert train.run(wanted("auto"))["val_accuracies"] == expected["val_accuracies"]
    assert tried[:2] == [4, 1] and set(tried[2:]) == {1}
    weights = [
        (tmp_path / name / "pruner/learned_scorer/weights.safetensors").read_bytes() for name in ("auto", "enough")
    ]
    assert weights[0] == weights[1]
    with pytest.raises(MemoryTooSmall, match="2 images at once.*gradient-checkpointing"):
        train.run(wanted("asked for", images_at_once=4))


def test_a_cluster_that_sets_world_size_alone_launches_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with joined_ranks("cpu") as ranks:
        assert ranks == Ranks() and prints()


def test_more_processes_than_devices_are_refused_before_they_wait_for_each_other(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in LAUNCHED:
        monkeypatch.setenv(name, "2" if name == "LOCAL_WORLD_SIZE" else "1")
    monkeypatch.setattr(ranks_module, "pick_device", torch.device)
    with pytest.raises(PrunerMisused, match="'cuda:0' has 1 on this machine"), joined_ranks("cuda:0"):
        pass
    assert not prints()


@pytest.mark.timeout(300)
def test_fault_38_two_processes_train_as_one(tiny, tmp_path, real_python):
    one, two = (
        tiny(run_dir=str(tmp_path / name), train=SECTION | {"batch_size": 4}, prune=PRUNE) for name in ("one", "two")
    )
    train.run(one)
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(two.model_dump(mode="json")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "stage2_prune", "train", "--json", "--config", str(config)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["processes"] == 2, "one process prints"
    assert done.stderr.count("is in") == 1 and done.stderr.count("epoch 0/2") == 1
    assert "device: cpu" in (tmp_path / "two/pruner/learned_scorer/config.yaml").read_text()
    ours, theirs = (tmp_path / name / "pruner" / "learned_scorer" for name in ("two", "one"))
    rows = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (ours, theirs)]
    assert len(rows[0]) == len(rows[1]) > 4
    for mine, other in zip(*rows, strict=True):
        assert mine.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        assert mine.get("accuracy") == other.get("accuracy")
    weights, expected = (load_file(folder / "weights.safetensors") for folder in (ours, theirs))
    assert all(torch.allclose(weights[name], expected[name], rtol=1e-5, atol=1e-5) for name in expected)
