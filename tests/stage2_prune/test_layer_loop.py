"""The layer loop against the stock model where nothing is dropped, and against masking in a stock model where it is."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from configs import plugin
from stage2_prune import pruners
from stage2_prune.errors import Infeasible, PrunerMisused, StockDiffers
from stage2_prune.language.cache_argument import CACHE, name_in
from stage2_prune.language.flow import causal_mask
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import PruningLanguage, pruning_inside
from stage2_prune.language.score import choice_scores, likeliest
from stage2_prune.pruners.combination import Combination
from stage2_prune.pruners.dart import Dart
from stage2_prune.pruners.dynamic_llava import DynamicLlava
from stage2_prune.pruners.fastv import FastV
from stage2_prune.pruners.fit_prune import FitPrune
from stage2_prune.pruners.layer_pruner import LayerPruner
from stage2_prune.pruners.lv_pruning import LvPruning
from stage2_prune.pruners.pyramid_drop import PyramidDrop
from stage2_prune.pruners.sparse_vlm import SparseVlm
from stage2_prune.pruners.sparse_vlm_plus import SparseVlmPlus
from stage2_prune.pruners.twig_vlm import TwigVlm
from stage2_prune.pruners.v2_drop import V2Drop
from stage2_prune.pruners.vtw import Vtw
from stage2_prune.pruning.in_llm import Drop
from stage2_prune.pruning.pruner import ModuleSpec, Pruner
from tests.stage2_prune.eager_oracle import Eager, of_question
from tests.stage2_prune.small_llama import (
    LAYERS,
    PATCHES,
    PROMPTS,
    WIDTH,
    answers,
    eager_twin,
    kept_by,
    questions,
    small_language,
)  # fmt: skip

STEPS = 12
INSIDE = {name: kind for name, kind in plugin.find_all(pruners, Pruner).items() if kind.place == "in_llm"}
SPEC = ModuleSpec((4, PATCHES // 4), {}, WIDTH)
METHODS = [
    (FastV(), 8),
    (FastV(layer=12), 18),
    (PyramidDrop(), 10),
    (SparseVlm(recycle=False), 6),
    (SparseVlmPlus(), 9),
    (V2Drop(), 7),
    (FitPrune(), 5),
    (Vtw(), 0),
    (Dart(), 9),
    (LayerPruner(layers=(8, 16), hidden=8).fresh(SPEC, seed=0), 10),
    (TwigVlm(rank=4).fresh(SPEC, seed=0), 9),
    (DynamicLlava(width=16, heads=2).fresh(SPEC, seed=0), 8),
    (LvPruning(width=16, heads=2).fresh(SPEC, seed=0), 9),
]


class KeepsAll:
    """A hook that looks at every question before every layer, and drops nothing."""

    layers = range(1, LAYERS)

    def drop(self, site):
        site.attention(site.text)
        return Drop(torch.arange(site.visual))


@pytest.fixture(scope="module")
def language():
    return small_language()


@torch.no_grad()
@pytest.mark.parametrize(
    "prompts", [PROMPTS, (PROMPTS[0], PROMPTS[2]), PROMPTS[:1]], ids=["padded", "padded-2", "alone"]
)
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hook_that_drops_nothing_gives_the_bits_of_the_stock_model(dtype, positions, prompts):
    stock = small_language(dtype)
    looped = PruningLanguage(**vars(stock), hook=KeepsAll(), positions=positions)
    batch = questions(stock, prompts=prompts)
    expected, found = generate(stock, batch, STEPS), generate(looped, batch, STEPS)
    assert torch.equal(expected.tokens, found.tokens) and torch.equal(expected.logits, found.logits)
    inputs = {
        "inputs_embeds": batch.inputs_embeds,
        "attention_mask": batch.attention_mask,
        "position_ids": batch.position_ids,
    }
    for use_cache in (False, True):
        forward = looped.answering(batch.slots)(**inputs, use_cache=use_cache).logits
        assert torch.equal(forward, stock.model(**inputs, use_cache=use_cache).logits)


@torch.no_grad()
def test_query_rows_from_cached_keys_equal_the_attention_of_a_stock_eager_model(language):
    seen = []

    class Looks(KeepsAll):
        def drop(self, site):
            rows = torch.cat([torch.arange(site.start + 3), site.text])
            seen.append((site.layer, rows, site.attention(rows), site.attention(site.last, ahead=True)))
            return Drop(torch.arange(site.visual))

    batch = questions(language)
    generate(PruningLanguage(**vars(language), hook=Looks(), positions="original"), batch, 1)
    for row in range(len(PROMPTS)):
        prompt, _ = of_question(batch, row)
        places = torch.arange(len(prompt))[None]
        stock = eager_twin(language)(
            inputs_embeds=prompt[None],
            position_ids=places,
            attention_mask=torch.ones_like(places),
            output_attentions=True,
        ).attentions
        for layer, rows, ran, ahead in seen[row :: len(PROMPTS)]:
            torch.testing.assert_close(ran, stock[layer - 1][0][:, rows], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ahead, stock[layer][0][:, -1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("pruner", "keep"), METHODS, ids=lambda value: repr(value))
def test_shortened_sequences_answer_as_masked_ones_do_in_a_stock_eager_model_without_a_cache(
    language, pruner, keep, positions
):
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    batch = questions(language)
    kept = kept_by(language, pruner, schedule, positions, batch)
    said = answers(language, pruner, schedule, positions, batch, STEPS)
    oracle = Eager(eager_twin(language))
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)
        rules = {
            layer: lambda view, stay=stay, start=start: [start + patch for patch in stay]
            for layer, stay in kept[row].items()
        }
        whole = torch.cat([prompt, language.embed(said.tokens[row, :-1])])
        logits = oracle.run(whole, start, PATCHES, len(prompt), rules, positions)
        torch.testing.assert_close(said.logits[row], logits[len(prompt) - 1 :], atol=1e-4, rtol=1e-4)
        counts = [PATCHES, *(len(oracle.kept[layer]) for layer in sorted(oracle.kept))]
        assert counts == [schedule.entering, *(stage.keep for stage in schedule.stages)]


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("pruner", "keep"), METHODS, ids=lambda value: repr(value))
def test_every_token_of_a_prompt_that_is_left_has_the_logits_of_the_masked_prompt(language, pruner, keep, positions):
    schedule, batch = pruner.schedule(PATCHES, LAYERS, keep), questions(language)
    model = pruning_inside(language, pruner, schedule, positions).answering(batch.slots)
    inputs = {name: vars(batch)[name] for name in ("inputs_embeds", "attention_mask", "position_ids")}
    shortened = model(**inputs).logits
    oracle = Eager(eager_twin(language))
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)
        stages = {span.first: [start + patch for patch in span.kept[row].tolist()] for span in model.model.spans[1:]}
        rules = {layer: lambda view, stay=stay: stay for layer, stay in stages.items()}
        masked = oracle.run(prompt, start, PATCHES, len(prompt), rules, positions)
        left = [*range(start), *stages[max(stages)], *range(start + PATCHES, len(prompt))]
        found = shortened[row, model.model.spans[-1].valid[row]]
        torch.testing.assert_close(found, masked[left], atol=1e-4, rtol=1e-4)


def test_no_method_inside_the_model_is_left_out_above():
    """A combination is PyramidDrop behind a selection: its own test has both halves."""
    assert {type(pruner) for pruner, _ in METHODS} == set(INSIDE.values()) - {Combination}


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_caches_hold_what_each_layer_saw_and_decoding_adds_to_all_of_them(language, positions):
    pruner, batch = PyramidDrop(), questions(language)
    schedule = pruner.schedule(PATCHES, LAYERS, 12)
    model = pruning_inside(language, pruner, schedule, positions).answering(batch.slots)
    done = model.generate(
        inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
        max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    text = batch.slots.shape[1] - PATCHES
    lengths = [layer.keys.shape[2] for layer in done[CACHE].layers]
    assert lengths == [text + tokens + 3 for tokens in schedule.tokens_per_layer]


@torch.no_grad()
@pytest.mark.parametrize(("pruner", "keep"), [*METHODS, (SparseVlm(), 9)], ids=lambda value: repr(value))
def test_a_question_is_pruned_and_answered_alike_alone_and_in_a_padded_batch(language, pruner, keep):
    schedule, positions = pruner.schedule(PATCHES, LAYERS, keep), pruner.positions
    together = kept_by(language, pruner, schedule, positions, questions(language))
    said = answers(language, pruner, schedule, positions, questions(language), STEPS)
    for row, prompt in enumerate(PROMPTS):
        batch = questions(language, prompts=(prompt,))
        assert kept_by(language, pruner, schedule, positions, batch)[0] == together[row]
        alone = answers(language, pruner, schedule, positions, batch, STEPS)
        assert torch.equal(alone.tokens[0], said.tokens[row, : alone.tokens.shape[1]])
        torch.testing.assert_close(alone.logits[0], said.logits[row, : alone.logits.shape[1]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("pruner", "keep"), METHODS, ids=lambda value: repr(value))
def test_ranking_continues_the_pruned_prompt_whatever_the_candidates_say(language, pruner, keep, positions):
    """Summed log-probabilities of each candidate, teacher-forced through the masked reference one by one."""
    schedule, batch = pruner.schedule(PATCHES, LAYERS, keep), questions(language)
    kept = kept_by(language, pruner, schedule, positions, batch)
    inside = pruning_inside(language, pruner, schedule, positions)
    options = [((5, 6), (7,), (8, 9, 10)), ((6, 6), (9,), (30, 31)), ((33,), (12, 13))]
    best = [likeliest(scores) for scores in choice_scores(inside, batch, torch.zeros(3, 40), options)]
    oracle = Eager(eager_twin(language))
    for row in range(len(PROMPTS)):
        prompt, start = of_question(batch, row)
        rules = {
            layer: lambda view, stay=stay, start=start: [start + patch for patch in stay]
            for layer, stay in kept[row].items()
        }
        totals = []
        for option in options[row]:
            ended = torch.tensor([*option, language.eos_token_ids[0]])
            whole = torch.cat([prompt, language.embed(ended[:-1])])
            logits = oracle.run(whole, start, PATCHES, len(prompt), rules, positions)[len(prompt) - 1 :]
            totals.append(sum(logits.log_softmax(-1)[step, token].item() for step, token in enumerate(ended)))
        assert best[row] == max(range(len(totals)), key=totals.__getitem__)


@torch.no_grad()
@pytest.mark.parametrize(("pruner", "keep"), [*METHODS, (SparseVlm(), 9)], ids=lambda value: repr(value))
def test_what_continues_a_prompt_padded_on_its_right_changes_nothing_that_is_kept_of_it(language, pruner, keep):
    schedule, batch = pruner.schedule(PATCHES, LAYERS, keep), questions(language, prompts=PROMPTS[:1])
    expected = kept_by(language, pruner, schedule, pruner.positions, batch)[0]
    model = pruning_inside(language, pruner, schedule, pruner.positions).answering(batch.slots.expand(2, -1), 3)
    embeds = torch.cat([batch.inputs_embeds.expand(2, -1, -1), language.embed(torch.tensor([[5, 6, 7], [8, 2, 2]]))], 1)
    mask = torch.cat([batch.attention_mask.expand(2, -1), torch.tensor([[1, 1, 1], [1, 0, 0]])], 1)
    places = torch.arange(embeds.shape[1]).expand(2, -1)
    model(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False)
    for one in model.model.spans[1:]:
        assert one.kept.tolist() == [expected[one.first]] * 2


def test_the_stock_model_is_left_as_it_was(language):
    pruner, batch = FastV(), questions(language)
    before = generate(language, batch, 2).logits
    modules = dict(language.model.named_modules())
    answers(language, pruner, pruner.schedule(PATCHES, LAYERS, 8), "original", batch, 2)
    assert dict(language.model.named_modules()) == modules
    assert torch.equal(generate(language, batch, 2).logits, before)


def test_merged_tokens_are_refused_at_original_positions_which_they_do_not_have(language):
    pruner = SparseVlm()
    with pytest.raises(Infeasible, match="compact"):
        pruning_inside(language, pruner, pruner.schedule(PATCHES, LAYERS, 9), "original")


def test_questions_of_a_batch_that_keep_different_counts_are_refused(language):
    class Uneven:
        layers = (1,)

        def drop(self, site):
            return Drop(torch.arange(site.start))

    batch = questions(language)
    with pytest.raises(PrunerMisused, match=r"\(2, 0\), \(3, 0\)"):
        generate(PruningLanguage(**vars(language), hook=Uneven(), positions="original"), batch, 1)


@pytest.mark.parametrize("kind", ["eager", "mistral"])
def test_models_that_the_loop_does_not_know_are_refused(language, kind):
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    if kind == "eager":
        model = LlamaForCausalLM._from_config(LlamaConfig(**shape), attn_implementation="eager")
    else:
        model = MistralForCausalLM._from_config(
            MistralConfig(**shape, num_key_value_heads=2), attn_implementation="sdpa"
        )
    other = Language(**{**vars(language), "model": model.eval()})
    looped = PruningLanguage(**vars(other), hook=KeepsAll(), positions="original")
    with pytest.raises(PrunerMisused, match="Llama with SDPA"):
        looped.answering(questions(language).slots)


@torch.no_grad()
@pytest.mark.parametrize("unknown", ["cache_position", "output_attentions", "kv_cache", "past_key_values", "cache"])
def test_an_argument_that_the_layer_loop_does_not_know_is_refused_by_name(language, unknown):
    """Under the other of a cache's two names too: a cache that is lost is a wrong answer."""
    batch = questions(language)
    model = PruningLanguage(**vars(language), hook=KeepsAll(), positions="original").answering(batch.slots)
    inputs = {"inputs_embeds": batch.inputs_embeds, "position_ids": batch.position_ids}
    loop = model.model
    if unknown == CACHE:
        assert loop(**inputs, use_cache=True, **{unknown: None})[CACHE].get_seq_length() == batch.slots.shape[1]
    else:
        with pytest.raises(StockDiffers, match=f"hands it {unknown}; .*pip install"):
            loop(**inputs, **{unknown: None})


def test_a_cache_of_any_name_but_the_two_known_ones_is_refused():
    def today(hidden_states, cache=None, **kwargs): ...
    def before(hidden_states, past_key_values=None): ...
    def tomorrow(hidden_states, memory=None, **kwargs): ...

    assert (name_in(today), name_in(before)) == ("cache", "past_key_values")
    for mixed in ((tomorrow,), (today, before)):
        with pytest.raises(
            StockDiffers, match="(tomorrow|before) to take a cache as cache or as past_key_values, .*pip install"
        ):
            name_in(*mixed)


def test_the_mask_is_left_away_only_where_sdpa_can_do_without():
    valid = torch.ones(2, 5, dtype=torch.bool)
    assert causal_mask(valid, 5) is None and causal_mask(valid, 1) is None
    assert causal_mask(valid, 2)[0, 0].tolist() == [[True, True, True, True, False], [True] * 5]
    valid[0, 0] = False
    assert causal_mask(valid, 1)[:, 0, 0].tolist() == [[False, True, True, True, True], [True] * 5]


def test_a_copy_of_a_model_shares_its_weights(language):
    pruner = FastV()
    batch = questions(language)
    model = pruning_inside(language, pruner, pruner.schedule(PATCHES, LAYERS, 8), "original").answering(batch.slots)
    assert model.lm_head is language.model.lm_head and model is not language.model
    assert copy.copy(language.model).model is language.model.model
