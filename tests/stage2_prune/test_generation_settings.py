"""Answers follow the checkpoint's generation config as the stock model on pixel values does, alone and in a batch."""

import json
import shutil

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from configs.experiment import ModelSection
from stage2_prune.find_family import open_language
from stage2_prune.language.assemble import assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.layer_loop import PruningLanguage
from store.checkpoint.generation import FOLLOWED, WITHOUT_EFFECT
from tests.helpers.checkpoints import WORDS, tiny_llava

QUESTIONS = ("what color is the circle ?", "is there a red square ?", "how many ?")
"""The plain model's answers: nothing; "three <image>"; "<s> two green green green <image>", which does not end."""
STEPS = 6
PATCHES = 16
LONGEST = 25
"""Tokens of the longest prompt."""
START, END, IMAGE, COLON = (WORDS.index(word) for word in ("<s>", "</s>", "<image>", "ASSISTANT:"))
THREE, TWO, GREEN, LEFT = (WORDS.index(word) for word in ("three", "two", "green", "left"))
SETTINGS = {
    "bad_words_ids": [[TWO]],
    "bad_words_ids after the last word of the prompt": [[COLON, THREE]],
    "begin_suppress_tokens": [END],
    "exponential_decay_length_penalty": [1, 9.0],
    "forced_bos_token_id": LEFT,
    "forced_eos_token_id": LEFT,
    "min_length": LONGEST + 3,
    "min_new_tokens": 3,
    "no_repeat_ngram_size": 2,
    "no_repeat_ngram_size of words in the prompt": 1,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 3.0,
    "sequence_bias": [[[COLON, THREE], -50.0]],
    "stop_strings": ["green", "red"],
    "suppress_tokens": [GREEN],
    "watermarking_config": {"bias": 30.0, "seeding_scheme": "lefthash"},
}
UNCHANGED = {"forced_bos_token_id", "remove_invalid_values", "renormalize_logits"}
"""Settings with which the stock model says what it says without them."""

OTHER_WAYS = {
    "do_sample": True,
    "num_beams": 3,
    "use_cache": False,
    "max_length": 4096,
    "max_new_tokens": 1,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": False,
    "return_dict_in_generate": False,
    "bos_token_id": GREEN,
    "temperature": 0.2,
    "top_k": 1,
    "top_p": 0.1,
    "min_p": 0.1,
    "top_h": 0.1,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "early_stopping": True,
    "length_penalty": 5.0,
    "max_cache_len": 3,
    "disable_compile": True,
    "decoder_start_token_id": GREEN,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_confidence_threshold": 0.1,
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "max_matching_ngram_size": 3,
    "transformers_version": "4.36.0",
    "_from_model_config": True,
    "_commit_hash": "0123456",
}
"""Values that a greedy answer does not depend on."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture
def with_settings(plain, tmp_path):
    """A copy of the checkpoint whose generation config says something more."""

    def make(**settings):
        checkpoint = shutil.copytree(plain, tmp_path / "checkpoint", dirs_exist_ok=True)
        path = checkpoint / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if "stop_strings" in settings:  # stock reads how words are joined from what becomes of "abcdef"
            words = checkpoint / "tokenizer.json"
            words.write_text(words.read_text().replace('"left"', '"abcdef"'))
        return checkpoint

    return make


def opened(checkpoint):
    return open_language(ModelSection(checkpoint=str(checkpoint), dtype="float32", device="cpu"))


@torch.no_grad()
def stock(checkpoint, language, rows=None):
    """What the whole model says to pixels: the batch, its answers, and the features that it used."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    rows = range(len(QUESTIONS)) if rows is None else rows
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(len(QUESTIONS), 3, 56, 56, generator=generator)[list(rows)]
    visual = torch.stack(list(model.get_image_features(pixels).pooler_output))
    batch = laid_out(language, visual, rows)
    said = model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels, max_new_tokens=STEPS,
        do_sample=False, num_beams=1, output_logits=True, return_dict_in_generate=True,
        **({"tokenizer": language.tokenizer} if model.generation_config.stop_strings else {}),
    )  # fmt: skip
    return batch, said.sequences[:, batch.input_ids.shape[1] :], torch.stack(said.logits, 1)


def laid_out(language, visual, rows, keep=PATCHES):
    index = torch.arange(keep).expand(len(visual), -1)
    prompts = [language.prompt(QUESTIONS[row]) for row in rows]
    return assemble(language, prompts, visual[:, :keep], index, PATCHES, "original")


def undropped(language):
    """The layer loop with a hook that is never called."""

    class Never:
        layers = ()

        def drop(self, site):
            raise AssertionError("no layer is named")

    return PruningLanguage(**vars(language), hook=Never(), positions="original")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_followed_gives_the_stock_models_answers_alone_and_in_a_padded_batch(
    plain, with_settings, name
):
    checkpoint = with_settings(**{name.split()[0]: SETTINGS[name]})
    language = opened(checkpoint)
    for rows in (None, [0], [1], [2]):
        batch, tokens, logits = stock(checkpoint, language, rows)
        for model in (language, undropped(language)):
            answers = generate(model, batch, STEPS)
            assert torch.equal(answers.tokens, tokens) and torch.equal(answers.logits, logits)
    assert batch.attention_mask.all()
    without = generate(opened(plain), stock(plain, language)[0], STEPS).tokens.tolist()
    follows = generate(language, stock(checkpoint, language)[0], STEPS).tokens.tolist()
    assert (follows == without) == (name in UNCHANGED)


def test_every_setting_that_is_said_to_be_followed_is_tried():
    assert {name.split()[0] for name in SETTINGS} == FOLLOWED


@torch.no_grad()
def test_a_least_length_that_counts_the_prompt_counts_it_as_it_was_before_pruning(with_settings):
    whole, new = opened(with_settings(min_length=LONGEST + 3)), opened(with_settings(min_length=0, min_new_tokens=3))
    visual = torch.zeros(2, PATCHES, whole.width)
    for keep in (PATCHES, 5, 1):
        tokens = [generate(one, laid_out(one, visual, [0, 2], keep), STEPS).tokens for one in (whole, new)]
        assert torch.equal(*tokens) and END not in tokens[0][:, :3], keep


def test_ids_that_stand_for_pruned_tokens_are_the_image_token_once_for_each_that_is_kept(plain):
    language = opened(plain)
    for keep in (PATCHES, 5):
        batch = laid_out(language, torch.zeros(2, PATCHES, language.width), [0, 2], keep)
        assert (batch.input_ids == IMAGE).sum(1).tolist() == [keep, keep]
        assert batch.unpruned == LONGEST


@pytest.mark.parametrize("name", OTHER_WAYS)
def test_a_setting_without_effect_leaves_the_answers_as_they_are(plain, with_settings, name):
    without = opened(plain)
    batch, _, _ = stock(plain, without)
    language = opened(with_settings(**{name: OTHER_WAYS[name]}))
    expected, found = generate(without, batch, STEPS), generate(language, batch, STEPS)
    assert torch.equal(expected.tokens, found.tokens) and torch.equal(expected.logits, found.logits)


def test_every_setting_that_is_said_to_be_without_effect_is_tried():
    assert OTHER_WAYS.keys() | {"eos_token_id", "pad_token_id"} == WITHOUT_EFFECT.keys()
