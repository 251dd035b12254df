"""The training of both checkpoints in its smallest form: whole, stopped and continued, opened by stock classes."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from configs.errors import ConfigError
from stage1_extract.demo.hard import training
from stage1_extract.demo.hard.recipe import CPU
from stage1_extract.demo.hard.scenes import scene
from stage1_extract.demo.pace import Pace
from stage1_extract.errors import NonFiniteLoss

TOY = replace(
    CPU, tower_width=16, language_width=16, heads=2, layers=2, deep_layers=3, window_steps=2, image_steps=2, window_scenes=1,
    image_scenes=1, scenes=4, held_out=2, language_steps=3, deep_steps=2, language_scenes=2, report_every=1, save_every=0.0,
)  # fmt: skip
FOLDERS = ("checkpoint", "deep/checkpoint")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    training.train(TOY, folder, folder / "log.jsonl")
    return folder


def entries(folder) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in lines]


@pytest.mark.parametrize("stops", [(2, 4, 6, 8), (1, 5), (9,)])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights_and_the_same_log(
    trained, tmp_path, monkeypatch, stops
):
    taken, step = 0, Pace.step

    def stopped_at_some_steps(self, loss):
        nonlocal taken
        taken += 1
        if taken in stops:
            raise KeyboardInterrupt
        step(self, loss)

    monkeypatch.setattr(Pace, "step", stopped_at_some_steps)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            training.train(TOY, tmp_path, tmp_path / "log.jsonl")
    training.train(TOY, tmp_path, tmp_path / "log.jsonl")
    for name in FOLDERS:
        assert (tmp_path / name / "model.safetensors").read_bytes() == (
            trained / name / "model.safetensors"
        ).read_bytes()
    assert entries(tmp_path) == entries(trained)


def test_a_finished_training_is_not_done_again(trained):
    before = {path: path.stat().st_mtime_ns for name in FOLDERS for path in (trained / name).iterdir()}
    log = entries(trained)
    training.train(TOY, trained, trained / "log.jsonl")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert entries(trained) == log


def test_the_state_of_another_recipe_is_refused(trained):
    with pytest.raises(ConfigError, match="another folder"):
        training.train(replace(TOY, deep_steps=9), trained, trained / "log.jsonl")


def test_a_loss_that_is_no_number_stops_the_training_and_names_the_step(tmp_path):
    with pytest.raises(NonFiniteLoss, match="tower has (nan|inf) in step 2"):
        training.train(replace(TOY, learning_rate=1e30), tmp_path, tmp_path / "log.jsonl")


def test_the_log_tells_the_recipe_every_phase_and_the_accuracy_of_every_kind(trained):
    log = entries(trained)
    assert list(dict.fromkeys(entry["phase"] for entry in log)) == [
        "recipe", "tower", "features", "held-out", "language", "language: random patches",
        "language: patches that a question is about first", "deep-language", "deep-language: random patches",
        "deep-language: patches that a question is about first",
    ]  # fmt: skip
    assert log[0]["seed"] == TOY.seed
    assert log[-2]["0"].keys() == {"color", "read", "count", "relation", "exists", "all"}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_fresh_checkpoint_is_opened_by_stock_classes_and_answers_a_question_about_pixels(trained, name):
    model, info = LlavaForConditionalGeneration.from_pretrained(trained / name, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.float16
    processor = AutoProcessor.from_pretrained(trained / name)
    content = [{"type": "image"}, {"type": "text", "text": "how many striped objects are there?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=scene(0, 0).image, text=text, return_tensors="pt")
    answer = model.float().generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 1


def test_both_checkpoints_have_the_same_tower_and_projector_so_that_they_share_a_store(trained):
    first, second = (load_file(trained / name / "model.safetensors") for name in FOLDERS)
    shared = [key for key in first if "vision_tower" in key or "projector" in key]
    assert len(shared) > 50
    assert all(torch.equal(first[key], second[key]) for key in shared)
    layers = [sum("input_layernorm" in key for key in of) for of in (first, second)]
    assert layers == [TOY.layers, TOY.deep_layers]
