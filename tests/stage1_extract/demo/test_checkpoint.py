"""The checkpoint that is shipped: standard, small, complete, and able to answer."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

import stage1_extract.demo
from stage1_extract.demo.questions import questions
from stage1_extract.demo.scenes import scene
from stage1_extract.demo.words import UNKNOWN, vocabulary
from stage1_extract.demo.write import SPLIT_STRIDE

CHECKPOINT = Path(stage1_extract.demo.__file__).parent / "checkpoint"
TEST_SPLIT = 2 * SPLIT_STRIDE
SCENES = 2


@pytest.fixture(scope="module")
def loaded():
    model, info = LlavaForConditionalGeneration.from_pretrained(CHECKPOINT, output_loading_info=True)
    return model.eval(), AutoProcessor.from_pretrained(CHECKPOINT), info


def test_the_checkpoint_has_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12_000_000


def test_stock_transformers_finds_every_weight_and_no_other(loaded):
    _, _, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_it_has_llavas_geometry_and_its_head_is_its_own(loaded):
    model, processor, _ = loaded
    assert model.dtype == torch.float32
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"
    assert not model.config.tie_word_embeddings
    assert not model.config.text_config.tie_word_embeddings
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"


def test_the_tokenizer_knows_every_word_of_every_question_and_answer(loaded):
    _, processor, _ = loaded
    tokenizer = processor.tokenizer
    assert tokenizer.get_vocab() == vocabulary()
    for index in range(100):
        for question in questions(scene(0, index), 0, index):
            ids = tokenizer(" ".join([question.text, *question.choices]))["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.convert_tokens_to_ids(UNKNOWN) not in ids
            assert len(tokenizer(question.answer, add_special_tokens=False)["input_ids"]) == 1


def test_it_answers_unseen_questions_with_one_word_and_the_end(loaded):
    model, processor, _ = loaded
    right = []
    for index in range(TEST_SPLIT, TEST_SPLIT + SCENES):
        drawn = scene(0, index)
        for question in questions(drawn, 0, index):
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = processor(images=drawn.image, text=text, return_tensors="pt")
            tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            right.append(processor.decode(tokens, skip_special_tokens=True).strip() == question.answer)
            assert tokens[-1] == processor.tokenizer.eos_token_id
    assert sum(right) >= 0.9 * len(right)


def test_loading_it_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LlavaForConditionalGeneration.from_pretrained(CHECKPOINT)
        AutoProcessor.from_pretrained(CHECKPOINT)
