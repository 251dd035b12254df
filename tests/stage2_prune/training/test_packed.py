"""Questions packed behind one image are answered as if each were asked alone, at any weight of its patches."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from stage2_prune.contract.small_llama import small_language
from stage2_prune.primitives.soft_topk import soft_top_k
from stage2_prune.training.packed import Lesson, answer_logits, log_weight, pack
from store.checkpoint.text import Prompt

PATCHES, WIDTH = 16, 32
LESSONS = [
    Lesson(Prompt((1, 5), (7, 8, 9)), (10, 2)),
    Lesson(Prompt((1, 5), (11, 12)), (13, 14, 2)),
    Lesson(Prompt((1, 5), (7,)), (10, 2)),
]


@pytest.fixture(scope="module")
def language():
    language = small_language(layers=3)
    language.model.requires_grad_(False)
    return language


@pytest.fixture(scope="module")
def visual():
    return torch.randn(PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


def alone(language, visual, index, lesson):
    """The stock model on one question with the patches of `index`, at their original positions."""
    before, after = torch.tensor(lesson.prompt.before), torch.tensor([*lesson.prompt.after, *lesson.answer])
    embeds = torch.cat([language.embed(before), visual[index], language.embed(after)])
    first = len(before)
    places = [torch.arange(first), first + index, first + PATCHES + torch.arange(len(after))]
    said = language.model(
        inputs_embeds=embeds[None],
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        position_ids=torch.cat(places)[None],
    )
    return said.logits[0, -len(lesson.answer) - 1 : -1]


@pytest.mark.parametrize("kept", [range(PATCHES), (0, 1), (1, 4, 5, 9), (15,)])
def test_packed_questions_equal_asking_one_at_a_time_with_the_other_patches_removed(language, visual, kept):
    index = torch.tensor(list(kept))
    weights = torch.zeros(PATCHES).index_fill(0, index, 1)
    packed = answer_logits(language, visual, weights, pack(LESSONS, language.device))
    single = torch.cat([alone(language, visual, index, lesson) for lesson in LESSONS])
    torch.testing.assert_close(packed, single, rtol=1e-5, atol=1e-5)


def test_weights_of_1_change_no_bit(language, visual):
    packed = pack(LESSONS, language.device)
    without = answer_logits(language, visual, None, packed)
    assert torch.equal(answer_logits(language, visual, torch.ones(PATCHES), packed), without)


def test_an_answer_is_scored_from_before_its_first_token_to_its_end_token():
    packed = pack(LESSONS, torch.device("cpu"))
    assert packed.answer.tolist() == [10, 2, 13, 14, 2, 10, 2]
    assert packed.ids[packed.scored].tolist() == [9, 10, 12, 13, 14, 7, 10]
    assert packed.offset.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def test_the_gradient_of_the_loss_in_the_scores_equals_finite_differences(language, visual):
    lessons = pack(LESSONS, language.device)
    scores = torch.randn(1, PATCHES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(scores):
        logits = answer_logits(language, visual, soft_top_k(scores, 5, 0.5)[0].float(), lessons)
        return torch.nn.functional.cross_entropy(logits, lessons.answer)

    leaf = scores.clone().requires_grad_()
    loss(leaf).backward()
    step = 1e-2 * torch.eye(PATCHES, dtype=torch.float64)
    with torch.no_grad():
        numeric = torch.stack([(loss(scores + d) - loss(scores - d)) / 2e-2 for d in step])
    torch.testing.assert_close(leaf.grad[0].float(), numeric, rtol=0.02, atol=1e-4)


def test_patches_that_are_gone_leave_no_nan_in_the_gradient(language, visual):
    weights = torch.ones(PATCHES)
    weights[3:] = 0
    weights[4] = 1e-42  # subnormal: 1 / weight would be infinite
    weights.requires_grad_()
    answer_logits(language, visual, weights, pack(LESSONS, language.device)).square().sum().backward()
    assert torch.isfinite(weights.grad).all() and (weights.grad[3:] == 0).all()
    assert log_weight(torch.tensor([0.0, 1.0])).tolist() == [-torch.inf, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_close_logits_in_float32(language, visual, dtype):
    lessons = pack(LESSONS, language.device)
    weights = torch.linspace(0, 1, PATCHES)
    exact = answer_logits(language, visual, weights, lessons)
    config = language.model.config
    half = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    half.load_state_dict(language.model.state_dict())
    other = replace(language, model=half)
    logits = answer_logits(other, visual, weights, lessons)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.15)


def test_a_gradient_reaches_the_attention_mask_only_together_with_the_queries(language, visual, monkeypatch):
    # CUDA's memory-efficient attention cannot do otherwise: training crashed on a GPU (pytorch/pytorch#148476).
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **rest):
        seen.append((attn_mask.requires_grad, query.requires_grad))
        return attend(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    weights = torch.full((PATCHES,), 0.5, requires_grad=True)
    answer_logits(language, visual, weights, pack(LESSONS, language.device)).sum().backward()
    assert len(seen) == language.model.config.num_hidden_layers
    assert all(query or not mask for mask, query in seen)
    assert visual.grad is None
