"""What visual tokens cost: the figures of published tables, and a FLOP counter."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    StableLmConfig,
)

from configs.experiment import Flops
from stage2_prune.errors import NotComparable
from stage2_prune.language.layer_loop import pruning_inside
from stage2_prune.language.price import CONVENTIONS, LanguageShape, one_convention, price, shape_of
from stage2_prune.pruners.fastv import FastV
from stage2_prune.pruners.pyramid_drop import PyramidDrop
from stage2_prune.pruners.sparse_vlm import SparseVlm
from stage2_prune.pruners.vtw import Vtw
from stage2_prune.pruning.schedule import Schedule, Stage
from tests.stage2_prune.small_llama import LAYERS, PATCHES, PROMPTS, questions, small_language

LLAVA_7B = LanguageShape(layers=32, width=4096, heads=32, kv_heads=32, head=128, mlp=11008, itemsize=2)


def tera(convention, tokens, text=0):
    return round(CONVENTIONS[convention].count(LLAVA_7B, (tokens,) * 32, text) / 1e12, 3)


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


@torch.no_grad()
@pytest.mark.parametrize("heads", [4, 2], ids=["shared keys", "keys of every head"])
@pytest.mark.parametrize(("pruner", "keep"), [(FastV(), 8), (PyramidDrop(), 12), (SparseVlm(), 9), (Vtw(), 0)], ids=str)
def test_a_schedule_costs_in_every_layer_what_torch_counts_there(pruner, keep, heads):
    """Layers alone: what a method computes to choose is no part of them, as its time is none."""
    language = small_language(heads=heads)
    schedule, batch = pruner.schedule(PATCHES, LAYERS, keep), questions(language, prompts=PROMPTS[:1])
    model = pruning_inside(language, pruner, schedule, pruner.positions).answering(batch.slots)
    inputs = {name: vars(batch)[name] for name in ("inputs_embeds", "attention_mask", "position_ids")}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others are not in torch's counter
        model(**inputs)
    found = counter.get_flop_counts()
    counted = [sum(found[f"LlamaForCausalLM.model.decoder.layers.{layer}"].values()) for layer in range(LAYERS)]
    shape, text = shape_of(language), batch.slots.shape[1] - PATCHES
    expected = [CONVENTIONS["flops_all"].count(shape, [tokens], text) for tokens in schedule.tokens_per_layer]
    assert counted == expected and counted[-1] < counted[0]
    assert sum(counted) == price(shape, [(schedule, text)]).flops["flops_all"]


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig, MistralConfig, Qwen2Config, Phi3Config, GemmaConfig, StableLmConfig,
        lambda **sizes: LlamaConfig(**sizes, head_dim=24), lambda **sizes: Qwen2Config(**sizes | {"num_key_value_heads": None}),
        lambda **sizes: GPTNeoXConfig(**{name: size for name, size in sizes.items() if name != "num_key_value_heads"}),
    ],
)  # fmt: skip
def test_the_keys_and_values_that_are_priced_are_those_that_the_stock_model_caches(config):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    made = config(**sizes, num_hidden_layers=2, vocab_size=40, pad_token_id=0)
    language = replace(small_language(), model=AutoModelForCausalLM.from_config(made).eval())
    with torch.no_grad():
        cache = next(
            value for value in language.model(torch.ones(1, 3, dtype=torch.long)).values() if hasattr(value, "layers")
        )
    cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = shape_of(language)
    assert cached == 3 * shape.kv_bytes * shape.layers and shape.mlp == 64
    assert not hasattr(made, "head_dim") or made.head_dim is None or made.head_dim == shape.head


def test_a_selection_before_the_language_model_enters_every_layer_whole():
    found = price(LLAVA_7B, [(Schedule(32, 64), 0)])
    assert found.tokens_per_layer == (64,) * 32 and found.tokens_per_layer_mean == 64
    assert found.flops["macs_vision"] == CONVENTIONS["macs_vision"].count(LLAVA_7B, (64,) * 32, 0)


def test_a_price_is_the_mean_over_questions():
    small, large = Schedule(32, 64), Schedule(32, 576, (Stage(2, 64),))
    found = price(LLAVA_7B, [(small, 40), (large, 60), (small, 50), (large, 60)])
    assert found.tokens_per_layer == (320, 320, *[64] * 30)
    assert found.tokens_per_layer_mean == 80
    assert found.kv_bytes == 80 * 32 * 2 * 4096 * 2
    expected = [
        CONVENTIONS["macs_all"].count(LLAVA_7B, schedule.tokens_per_layer, text)
        for schedule, text in ((small, 40), (small, 50), (large, 60), (large, 60))
    ]
    assert found.flops["macs_all"] == sum(expected) / 4


def test_the_cache_of_an_unpruned_image_in_half_precision_is_300_megabytes():
    assert price(LLAVA_7B, [(Schedule(32, 576), 0)]).kv_bytes == 576 * 512 * 1024


def test_a_table_of_two_conventions_is_refused():
    rows = [{"flops_convention": "macs_vision"}, {"flops_convention": "flops_all"}]
    assert one_convention(rows[:1] * 2) == "macs_vision"
    with pytest.raises(NotComparable, match="flops_all and macs_vision") as caught:
        one_convention(rows)
    assert caught.value.exit_code == 4
