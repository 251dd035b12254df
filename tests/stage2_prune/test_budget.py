"""What visual tokens cost: the figures of published tables, a FLOP counter, and matched budgets."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from configs.experiment import Flops
from stage2_prune.budget import (
    CONVENTIONS,
    Infeasible,
    LanguageShape,
    Schedule,
    matched_keep,
    one_convention,
    price,
)
from stage2_prune.errors import NotComparable, PrunerMisused

LLAVA_7B = LanguageShape(layers=32, width=4096, heads=32, kv_heads=32, head=128, mlp=11008, itemsize=2)


def tera(convention, tokens, text=0):
    return round(CONVENTIONS[convention].count(LLAVA_7B, (tokens,) * 32, text) / 1e12, 3)


def mean(schedule):
    return sum(schedule.entering) / len(schedule.entering)


@pytest.mark.parametrize(
    ("convention", "figures"),
    [
        ("macs_vision", {576: 3.817, 192: 1.253, 128: 0.833, 64: 0.416}),
        ("flops_vision_2mlp", {576: 5.972, 192: 1.952, 128: 1.297, 64: 0.646}),
        ("macs_vision_2mlp", {576: 2.986, 192: 0.976, 128: 0.649, 64: 0.323}),
    ],
)
def test_each_convention_gives_the_figures_of_the_tables_that_use_it(convention, figures):
    assert {tokens: tera(convention, tokens) for tokens in figures} == figures


def test_conventions_that_count_the_prompt_give_the_figures_of_their_tables():
    assert tera("macs_all", 576, text=62) == 4.238
    assert tera("flops_all", 576, text=92) == pytest.approx(8.89, abs=0.01)
    assert tera("macs_all_2mlp", 576, text=0) == tera("macs_vision_2mlp", 576)


def test_every_convention_that_a_config_may_name_is_defined_and_described():
    assert set(CONVENTIONS) == set(get_args(Flops))
    assert len({convention.description for convention in CONVENTIONS.values()}) == len(CONVENTIONS)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_convention_of_a_flop_counter_is_what_torch_counts_in_a_prefill(kv_heads):
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, attn_implementation="eager",  # SDPA on a CPU is not in torch's counter
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    visual, text = 23, 7
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=torch.zeros(1, visual + text, 48))
    found = counter.get_flop_counts()
    counted = sum(sum(found[f"LlamaForCausalLM.model.layers.{layer}"].values()) for layer in range(3))
    shape = LanguageShape(3, 48, 4, kv_heads, 12, 80, 4)
    assert CONVENTIONS["flops_all"].count(shape, (visual,) * 3, text) == counted


def test_a_price_is_the_mean_over_questions():
    small, large = Schedule.flat(32, 64), Schedule.dropping(32, 576, {2: 64})
    found = price(LLAVA_7B, [(small, 40), (large, 60), (small, 50), (large, 60)])
    assert found.tokens_per_layer == (320, 320, *[64] * 30)
    assert found.tokens_per_layer_mean == 80
    assert found.kv_bytes == 80 * 32 * 2 * 4096 * 2
    expected = [
        CONVENTIONS["macs_all"].count(LLAVA_7B, schedule.entering, text)
        for schedule, text in ((small, 40), (small, 50), (large, 60), (large, 60))
    ]
    assert found.flops["macs_all"] == sum(expected) / 4


def test_the_cache_of_an_unpruned_image_in_half_precision_is_300_megabytes():
    assert price(LLAVA_7B, [(Schedule.flat(32, 576), 0)]).kv_bytes == 576 * 512 * 1024


def test_a_method_that_evicts_from_the_cache_is_charged_for_what_it_computes_and_for_what_it_caches():
    found = price(LLAVA_7B, [(Schedule((576,) * 32, (64,) * 32), 0)])
    assert found.tokens_per_layer_mean == 576
    assert found.kv_bytes == 64 * 512 * 1024


@pytest.mark.parametrize(
    ("left", "average"),
    [
        ({2: 144}, 171),  # FastV's defaults
        ({2: 288}, 306),
        ({8: 288, 16: 144, 24: 72}, 270),  # PyramidDrop's
        ({2: 188}, 212.25),  # DART's at "192", "128" and "64"
        ({2: 124}, 152.25),
        ({2: 60}, 92.25),
    ],
)
def test_layer_averages_are_those_of_the_methods_published_settings(left, average):
    assert mean(Schedule.dropping(32, 576, left)) == average


def test_a_drop_before_the_first_layer_is_a_drop_before_the_language_model():
    assert Schedule.dropping(4, 576, {0: 9}) == Schedule.flat(4, 9)
    assert mean(Schedule.dropping(32, 576, {0: 96, 16: 32})) == 64  # VScan at "64"


def test_a_drop_at_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(PrunerMisused, match=r"layers 0 to 3 .* got 16"):
        Schedule.dropping(4, 576, {2: 9, 16: 0})


@pytest.mark.parametrize("match", ["mean-tokens", "kv"])
@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (lambda keep: {2: keep}, (166, 98, 30)),  # FastV, K = 2
        (lambda keep: {3: keep}, (152, 82, 11)),  # FastV, K = 3
        (lambda keep: {2: keep, 24: 0}, (227, 134, 41)),  # TwigVLM
    ],
)
def test_methods_inside_the_language_model_are_matched_as_published(match, left, kept):
    def schedule(keep):
        return Schedule.dropping(32, 576, left(keep))

    assert tuple(matched_keep(match, tokens, 576, schedule) for tokens in (192, 128, 64)) == kept


def test_matching_what_is_kept_takes_the_budget_as_it_is():
    assert matched_keep("kept", 16, 576, lambda keep: Schedule.dropping(4, 576, {2: keep})) == 16


def test_matching_the_cache_looks_at_what_is_cached():
    def schedule(keep):
        return Schedule((576,) * 4, (keep,) * 4)

    assert matched_keep("kv", 16, 576, schedule) == 16
    assert isinstance(matched_keep("mean-tokens", 16, 576, schedule), Infeasible)


def test_two_full_layers_of_four_cannot_average_16_tokens():
    found = matched_keep("mean-tokens", 16, 576, lambda keep: Schedule.dropping(4, 576, {2: keep}))
    assert isinstance(found, Infeasible)
    assert "288.5 to 576 for 1 to 576 kept" in found.reason


def test_a_method_that_ends_early_cannot_average_more_than_its_layers_allow():
    found = matched_keep("mean-tokens", 500, 576, lambda keep: Schedule.dropping(32, 576, {24: 0, 2: keep}))
    assert isinstance(found, Infeasible) and "to 432 for" in found.reason


def test_keeping_nothing_is_never_the_answer():
    found = matched_keep("mean-tokens", 54, 576, lambda keep: Schedule.dropping(32, 576, {3: keep}))
    assert isinstance(found, Infeasible)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 8), st.integers(1, 40))
def test_a_match_is_the_nearest_that_any_count_gives(patches, layers, drop, tokens):
    drop, tokens = min(drop, layers - 1), min(tokens, patches)

    def schedule(keep):
        return Schedule.dropping(layers, patches, {drop: keep})

    found = matched_keep("mean-tokens", tokens, patches, schedule)
    ideal = (tokens * layers - drop * patches) / (layers - drop)
    assert isinstance(found, Infeasible) == (ideal < 0.5 if patches > 1 else False)
    if isinstance(found, int):
        missed = [abs(mean(schedule(keep)) - tokens) for keep in range(1, patches + 1)]
        assert missed[found - 1] == min(missed)


def test_a_table_of_two_conventions_is_refused():
    rows = [{"flops_convention": "macs_vision"}, {"flops_convention": "flops_all"}]
    assert one_convention(rows[:1] * 2) == "macs_vision"
    with pytest.raises(NotComparable, match="flops_all and macs_vision") as caught:
        one_convention(rows)
    assert caught.value.exit_code == 4
