"""The time of a prefill, and its predictions: operations, bytes, and their roofline, against numbers made by hand."""

import pytest
import torch

from stage2_prune.errors import NotCaptured
from stage2_prune.language.prefill import prefill_latency, static_forward
from stage2_prune.language.roofline import Peaks, Roofline, device_peaks, prefill_roofline
from tests.stage2_prune.small_llama import LAYERS, PROMPTS, VOCABULARY, WIDTH, questions, small_language


@pytest.fixture(scope="module")
def language():
    return small_language()


def test_a_prefill_is_timed_eager_and_says_why_there_is_no_graph_on_a_cpu(language):
    assert 0 < prefill_latency(language.model, 2, 8, graphs=False, runs=2) < 60
    with pytest.raises(NotCaptured, match="on cpu"):
        prefill_latency(language.model, 2, 8, graphs=True)


def test_the_forward_of_a_graph_gives_the_logits_of_the_eager_one_also_where_positions_have_gaps(language):
    batch = questions(language, prompts=(PROMPTS[0],))
    positions = batch.position_ids + 3 * (torch.arange(batch.position_ids.shape[1]) > 5)
    asked = {"inputs_embeds": batch.inputs_embeds, "position_ids": positions}
    with torch.no_grad():
        eager = language.model(**asked, attention_mask=batch.attention_mask, use_cache=True, logits_to_keep=1)
    assert torch.equal(static_forward(language.model, **asked)().logits, eager.logits)


def test_the_roofline_is_the_slower_of_arithmetic_and_memory_as_counted_by_hand(language):
    config = language.model.config
    heads, kv, head = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    mlp, tokens = config.intermediate_size, [10, *[4] * (LAYERS - 1)]
    matrices = 2 * WIDTH * heads * head + 2 * WIDTH * kv * head + 3 * WIDTH * mlp
    flops = sum(2 * n * matrices + 4 * n * n * heads * head for n in tokens) + 2 * VOCABULARY * WIDTH
    weights = 4 * (LAYERS * (matrices + 2 * WIDTH) + WIDTH + VOCABULARY * WIDTH)
    cache = sum(tokens) * 2 * kv * head * 4
    roofline = prefill_roofline(language.model, Peaks(1e6, 1e3), tokens, batch=3)
    assert roofline.compute == pytest.approx(3 * flops / 1e6)
    assert roofline.memory == pytest.approx((weights + 3 * cache) / 1e3)
    assert roofline.seconds == roofline.memory > roofline.compute


@pytest.mark.parametrize(
    ("compute", "memory", "eager", "graph", "bound"),
    [
        (2.4, 3.0, 39.7, 3.4, "launches"),
        (14.0, 3.1, 40.3, 18.0, "launches"),
        (2.4, 3.0, 4.0, 3.4, "memory"),
        (14.0, 3.1, 16.0, 15.5, "compute"),
        (14.0, 3.1, 40.3, 39.0, "compute"),
        (2.4, 3.0, 39.7, None, "memory"),
    ],
)
def test_the_binding_term_is_named(compute, memory, eager, graph, bound):
    assert Roofline(compute, memory).bound_by(eager, graph) == bound


def test_the_peaks_of_a_device_are_measured():
    peaks = device_peaks(torch.device("cpu"), torch.float32)
    assert 1e8 < peaks.flops_per_second < 1e14 and 1e7 < peaks.bytes_per_second < 1e13
