"""Packed training equals stock LLaVA asked one question at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, CLIPVisionModel, LlavaForConditionalGeneration

from stage1_extract.demo.language_lessons import DemoLanguageHalf, answer_logits, kept_patches, language_config, pack
from stage1_extract.demo.questions import questions
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import GRID, scene
from stage1_extract.demo.teaching import TokenisedQuestion, normalised
from stage1_extract.demo.tower_lessons import FEATURE_LAYER, tower_config
from stage1_extract.demo.train_checkpoint import save_model, save_processor
from stage1_extract.demo.words import EOS, vocabulary

PATCHES = GRID * GRID
SMALL = Recipe(tower_width=16, language_width=24, layers=2, heads=2, device="cpu")


@pytest.fixture(scope="module")
def packed_and_stock(tmp_path_factory):
    """A small random reader, the same weights as a stock LLaVA, and its processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    tower = CLIPVisionModel(tower_config(SMALL.tower_width, SMALL.layers, SMALL.heads)).eval()
    config = language_config(len(vocabulary()), SMALL.language_width, SMALL.layers, SMALL.heads)
    reader = DemoLanguageHalf(SMALL.tower_width, config).eval()
    for weight in (*tower.parameters(), *reader.parameters()):
        if weight.ndim > 1:  # larger than at initialisation, or every logit would be close to 0
            torch.nn.init.normal_(weight, std=0.3)
    save_processor(folder, vocabulary())
    save_model(tower, reader, folder)
    return (
        tower,
        reader,
        LlavaForConditionalGeneration.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )


@pytest.fixture(scope="module")
def drawn():
    return [scene(11, index) for index in range(2)]


def asked_about(drawn, processor) -> list[list[TokenisedQuestion]]:
    tokenizer = processor.tokenizer
    return [
        [
            TokenisedQuestion(
                question.kind,
                tuple(tokenizer(question.text, add_special_tokens=False)["input_ids"]),
                tokenizer.convert_tokens_to_ids(question.answer),
                question.patches,
            )
            for question in questions(item, 11, index)
        ]
        for index, item in enumerate(drawn)
    ]


def prompt(processor, text: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def stock_logits(stock, processor, item, question) -> torch.Tensor:
    """At the end of the prompt and at the answer, through pixel values."""
    text = f"{prompt(processor, question.text)} {question.answer}"
    inputs = processor(images=item.image, text=text, return_tensors="pt")
    return stock(**inputs).logits[0, -2:]


def raw_features(tower, drawn) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([np.array(item.image) for item in drawn]))
    return tower(normalised(pixels), output_hidden_states=True).hidden_states[FEATURE_LAYER][:, 1:]


def test_the_prompt_is_llavas(packed_and_stock):
    *_, processor = packed_and_stock
    assert prompt(processor, "how many stars are there?") == "USER: <image>\nhow many stars are there? ASSISTANT:"


def test_training_pixels_are_those_of_the_image_processor(packed_and_stock, drawn):
    *_, processor = packed_and_stock
    theirs = processor.image_processor([item.image for item in drawn], return_tensors="pt")["pixel_values"]
    ours = normalised(torch.from_numpy(np.stack([np.array(item.image) for item in drawn])))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_packed_logits_equal_stock_llava_asked_one_question_at_a_time_with_pixel_values(packed_and_stock, drawn):
    tower, reader, stock, processor = packed_and_stock
    packed = pack(asked_about(drawn, processor), PATCHES + 2, "cpu")
    kept = torch.arange(PATCHES).expand(len(drawn), -1)
    ours, right = answer_logits(reader, raw_features(tower, drawn), kept, packed)
    theirs = [
        stock_logits(stock, processor, item, question)
        for index, item in enumerate(drawn)
        for question in questions(item, 11, index)
    ]
    assert ours.abs().max() > 0.5
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-4, rtol=1e-4)
    assert (right.view(-1, 2)[:, 1] == processor.tokenizer.convert_tokens_to_ids(EOS)).all()


@torch.no_grad()
def test_packed_logits_of_pruned_images_equal_one_question_at_a_time_at_the_original_positions(packed_and_stock, drawn):
    tower, reader, stock, processor = packed_and_stock
    raw, keep = raw_features(tower, drawn), 40
    uniform = torch.zeros(len(drawn), PATCHES, dtype=torch.bool)
    kept = kept_patches(uniform, keep, 0.0, torch.Generator().manual_seed(0))
    ours, _ = answer_logits(reader, raw, kept, pack(asked_about(drawn, processor), PATCHES + 2, "cpu"))
    theirs = []
    for index, item in enumerate(drawn):
        visual = stock.model.multi_modal_projector(raw[index : index + 1, kept[index]])
        for question in questions(item, 11, index):
            text = f"{prompt(processor, question.text)} {question.answer}"
            ids = processor.tokenizer(text, return_tensors="pt")["input_ids"]
            words = stock.get_input_embeddings()(ids)
            embeds = torch.cat([words[:, :2], visual, words[:, 3:]], 1)
            after = 2 + PATCHES + torch.arange(ids.shape[1] - 3)
            places = torch.cat([torch.arange(2), 2 + kept[index], after])[None]
            mask = torch.ones_like(places)
            hidden = stock.model.language_model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=places
            ).last_hidden_state
            theirs.append(stock.lm_head(hidden[0, -2:]))
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-4, rtol=1e-4)


def test_a_random_subset_has_its_size_is_ascending_and_holds_no_patch_twice():
    shown = torch.zeros(3, PATCHES, dtype=torch.bool)
    shown[:, :50] = True
    for bias in (0.0, 8.0):
        kept = kept_patches(shown, 32, bias, torch.Generator().manual_seed(1))
        assert kept.shape == (3, 32)
        assert (kept.diff(dim=1) > 0).all()
