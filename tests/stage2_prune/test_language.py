"""The language half alone answers as the full model does, from every key layout, to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from configs.experiment import ModelSection
from stage2_prune.errors import PrunerMisused, WeightsMismatch
from stage2_prune.find_family import find_family, open_language
from stage2_prune.language.assemble import assemble, cast_is_exact
from stage2_prune.language.generate import generate
from store.checkpoint.opening import load_config
from store.errors import CheckpointMissing, InvalidQuestions
from tests.helpers.checkpoints import tiny_llava

QUESTIONS = ("what color is the circle ?", "is there a red square ?", "how many ?")
STEPS = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("language") / "checkpoint")


def opened(checkpoint, dtype="float32"):
    return open_language(ModelSection(checkpoint=str(checkpoint), dtype=dtype, device="cpu"))


def stock(checkpoint, dtype="float32"):
    return LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()


def pixels(model):
    size = model.config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(QUESTIONS), 3, size, size, generator=generator).to(model.dtype)


@torch.no_grad()
def features(model):
    return torch.stack(list(model.get_image_features(pixels(model)).pooler_output))


def everything(language, visual, positions="original"):
    patches = visual.shape[1]
    prompts = [language.prompt(question) for question in QUESTIONS]
    index = torch.arange(patches).expand(len(prompts), -1)
    return assemble(language, prompts, visual, index, patches, positions)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fault_40_unpruned_features_give_the_full_models_logits_and_tokens_bit_for_bit(checkpoint, dtype):
    language, model = opened(checkpoint, dtype), stock(checkpoint, dtype)
    batch = everything(language, features(model))
    answers = generate(language, batch, STEPS)
    said = model.generate(
        input_ids=batch.input_ids,
        pixel_values=pixels(model),
        attention_mask=batch.attention_mask,
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(torch.stack(said.logits, 1), answers.logits)
    assert torch.equal(said.sequences[:, batch.input_ids.shape[1] :], answers.tokens)


@torch.no_grad()
def test_an_assembled_batch_equals_transformers_own_way_to_pass_cached_features(checkpoint):
    language, model = opened(checkpoint), stock(checkpoint)
    batch = everything(language, features(model))
    where = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    cached = BaseModelOutputWithPooling(pooler_output=list(features(model)))
    oracle = model(input_ids=batch.input_ids, mm_encoder_outputs={"image": cached}, **where).logits
    assert torch.equal(language.model(inputs_embeds=batch.inputs_embeds, **where).logits, oracle)


@pytest.mark.parametrize("layout", ["v5", "hub4", "v4_52"])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_key_layout_opens_to_the_same_weights(tmp_path, layout, sharded):
    checkpoint = tiny_llava(tmp_path / "checkpoint", layout=layout, sharded=sharded)
    full = stock(checkpoint)
    expected = dict(full.model.language_model.named_parameters(prefix="model")) | {
        "lm_head.weight": full.lm_head.weight
    }
    found = dict(opened(checkpoint).model.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tied_head_is_tied_although_only_the_top_of_the_config_says_so(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint", tie=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config["tie_word_embeddings"] = True
    config["text_config"].pop("tie_word_embeddings", None)
    (checkpoint / "config.json").write_text(json.dumps(config))
    model = opened(checkpoint).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, stock(checkpoint).lm_head.weight)


def test_a_checkpoint_without_its_tower_and_projector_still_opens(checkpoint, tmp_path):
    stripped = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(stripped / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "language_model" in name or "lm_head" in name}
    assert len(kept) < len(weights)
    save_file(kept, stripped / "model.safetensors", {"format": "pt"})
    expected, found = opened(checkpoint).model.state_dict(), opened(stripped).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_missing_weight_is_an_error_and_not_a_random_one(tmp_path):
    broken = tiny_llava(tmp_path / "checkpoint")
    weights = load_file(broken / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight") and "language" in name))
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsMismatch, match="up_proj") as caught:
        opened(broken)
    assert caught.value.exit_code == 4


def test_rotary_frequencies_keep_float32_in_half_precision(checkpoint):
    assert opened(checkpoint, "bfloat16").model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_checkpoint_that_is_not_there_names_itself(tmp_path):
    with pytest.raises(CheckpointMissing) as caught:
        open_language(ModelSection(checkpoint=str(tmp_path / "absent")))
    assert caught.value.exit_code == 5


def test_a_model_of_another_type_says_which_folder_a_new_family_goes_to(checkpoint):
    config = load_config(str(checkpoint))
    config.model_type = "novel"
    with pytest.raises(PrunerMisused, match=r"llava.*'novel'.*stage2_prune/families"):
        find_family(config)


def test_a_prompt_is_the_processors_own_with_one_placeholder_for_the_image(checkpoint):
    language = opened(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    prompt = language.prompt(QUESTIONS[0])
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert language.text(QUESTIONS[0]) == text
    expected = processor.tokenizer(text)["input_ids"]
    assert [*prompt.before, language.image_token_id, *prompt.after] == expected


def test_a_question_that_holds_the_placeholder_itself_is_refused(checkpoint):
    with pytest.raises(InvalidQuestions, match="found 2"):
        opened(checkpoint).prompt("what is <image> ?")


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_chat_template_is_found_in_its_legacy_places_too(tmp_path, name):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    template = opened(checkpoint).template
    (checkpoint / "chat_template.jinja").unlink()
    legacy = checkpoint / name
    content = json.loads(legacy.read_text()) if legacy.is_file() else {}
    legacy.write_text(json.dumps(content | {"chat_template": template}))
    assert opened(checkpoint).template == template


def test_a_checkpoint_without_any_chat_template_is_refused(tmp_path):
    checkpoint = tiny_llava(tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointMissing, match="chat template"):
        opened(checkpoint)


def test_choices_are_tokenised_where_they_would_be_answered(checkpoint):
    language = opened(checkpoint)
    text = language.text(QUESTIONS[0])
    ids = language.tokenizer(text)["input_ids"]
    for word in ("red", "blue"):
        assert [*ids, *language.answer_ids(QUESTIONS[0], word)] == language.tokenizer(f"{text} {word}")["input_ids"]


@torch.no_grad()
def test_dropped_patches_at_original_positions_equal_masked_ones(checkpoint):
    """Index-select with gaps in the positions, against an independent reference that masks the dropped."""
    language, model = opened(checkpoint), stock(checkpoint)
    visual = features(model)
    patches = visual.shape[1]
    full = everything(language, visual)
    index = torch.stack(
        [torch.arange(patches).roll(shift)[: patches // 3].sort().values for shift in range(len(QUESTIONS))]
    )
    mask = full.attention_mask.clone()
    for row in range(len(QUESTIONS)):
        slots = (full.input_ids[row] == language.image_token_id).nonzero()[:, 0]
        dropped = sorted(set(range(patches)) - set(index[row].tolist()))
        mask[row, slots[dropped]] = 0
    kept = visual.gather(1, index[..., None].expand(-1, -1, visual.shape[-1]))
    prompts = [language.prompt(question) for question in QUESTIONS]
    batch = assemble(language, prompts, kept, index, patches, "original")
    masked = language.model(inputs_embeds=full.inputs_embeds, attention_mask=mask, position_ids=full.position_ids)
    answers = generate(language, batch, 1)
    torch.testing.assert_close(answers.logits[:, 0], masked.logits[:, -1], atol=1e-5, rtol=1e-4)
    # Alone there is no padding, and generate() drops the mask.
    alone = assemble(language, prompts[:1], kept[:1], index[:1], patches, "original")
    assert (alone.attention_mask == 1).all()
    torch.testing.assert_close(generate(language, alone, 1).logits, answers.logits[:1], atol=1e-5, rtol=1e-4)


def test_compact_positions_are_consecutive_and_original_ones_leave_the_text_where_it_stood(checkpoint):
    language = opened(checkpoint)
    prompt = language.prompt(QUESTIONS[0])
    before, after = len(prompt.before), len(prompt.after)
    index = torch.tensor([[1, 4, 5]])
    visual = torch.zeros(1, 3, language.width)
    compact = assemble(language, [prompt], visual, index, 9, "compact").position_ids[0].tolist()
    original = assemble(language, [prompt], visual, index, 9, "original").position_ids[0].tolist()
    assert compact == list(range(before + 3 + after))
    assert original == [
        *range(before),
        before + 1,
        before + 4,
        before + 5,
        *range(before + 9, before + 9 + after),
    ]


def test_merged_tokens_have_no_original_positions(checkpoint):
    language = opened(checkpoint)
    prompt, visual = language.prompt(QUESTIONS[0]), torch.zeros(1, 3, language.width)
    assert assemble(language, [prompt], visual, None, 9, "compact").position_ids.shape[1] > 3
    with pytest.raises(PrunerMisused, match="compact"):
        assemble(language, [prompt], visual, None, 9, "original")


def test_a_cast_is_called_exact_only_where_it_can_change_no_value():
    assert cast_is_exact(torch.float32, torch.float32)
    assert cast_is_exact(torch.bfloat16, torch.float32)
    assert not cast_is_exact(torch.float32, torch.bfloat16)
    assert not cast_is_exact(torch.float16, torch.bfloat16)
