"""The whole recipe in its smallest form, worker processes included."""

import json

import pytest
from transformers import AutoProcessor, LlavaForConditionalGeneration

from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import scene
from stage1_extract.demo.train_checkpoint import summary, train_checkpoint

TINY = Recipe(
    scenes=4, held_out=2, tower_width=16, language_width=16, layers=2, heads=2, tower_steps=2, tower_batch=2,
    language_steps=2, language_batch=2, questions_per_scene=3, report_every=1, device="cpu", workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_checkpoint(TINY, folder / "checkpoint", folder / "log.jsonl")
    return folder / "checkpoint", folder / "log.jsonl"


def test_a_fresh_checkpoint_is_opened_by_stock_classes_and_answers_a_question_about_pixels(trained):
    checkpoint, _ = trained
    model, info = LlavaForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": "how many stars are there?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=scene(0, 0).image, text=text, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 1


def test_the_log_tells_the_recipe_every_phase_and_the_accuracy_of_every_kind(trained):
    _, log = trained
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    phases = [entry["phase"] for entry in entries]
    assert list(dict.fromkeys(phases)) == [
        "recipe", "scenes", "tower", "encoded", "language",
        "random patches", "patches that show an object first",
    ]  # fmt: skip
    assert entries[0]["scenes"] == TINY.scenes and entries[0]["seed"] == TINY.seed
    scores = entries[-2]["576"]
    assert scores.keys() == {"color", "shape", "exists", "count", "side", "all"}
    assert len(summary(log).splitlines()) == len(set(phases))
