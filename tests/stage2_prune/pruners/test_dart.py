"""DART against loops over keys and hidden states of a stock model."""

import math

import pytest
import torch

from stage2_prune.pruners.dart import Dart
from stage2_prune.pruning.schedule import staged
from tests.stage2_prune.pruners.golden import check, layers_of
from tests.stage2_prune.small_llama import LAYERS, PATCHES


def rotated_key_norms(view):
    """L1 norm over all cached heads of each token's key, rotated by hand: pairs (i, i + half) turn by position x frequency."""
    stock = view.model.model
    layer = stock.layers[view.layer - 1]
    keys = layer.self_attn.k_proj(layer.input_layernorm(view.before)).tolist()
    width = layer.self_attn.head_dim
    frequencies = stock.rotary_emb.inv_freq.tolist()
    norms = {}
    for token in (*view.image, *view.text):
        total = 0.0
        for head in range(len(keys[token]) // width):
            part = keys[token][head * width : (head + 1) * width]
            for pair, frequency in enumerate(frequencies):
                angle = view.places[token] * frequency
                a, b = part[pair], part[pair + width // 2]
                total += abs(a * math.cos(angle) - b * math.sin(angle)) + abs(b * math.cos(angle) + a * math.sin(angle))
        norms[token] = total
    return norms


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def naive(pruner):
    def rule(view, count):
        norms = rotated_key_norms(view)
        states = view.model.model.norm(view.hidden).tolist()
        image = sorted(view.image, key=lambda token: -norms[token])[: min(pruner.image_pivots, count)]
        text = sorted(view.text, key=lambda token: -norms[token])[: pruner.text_pivots]
        pivots = [*image, *text]
        if pruner.quirks == "official":
            pivots = list(set(image + text).copy())
        chosen, left = list(image), count - len(image)
        quotas = [left // len(pivots)] * len(pivots)
        for turn in range(left % len(pivots)):
            quotas[turn] += 1
        for pivot, quota in zip(pivots, quotas, strict=True):
            rest = [token for token in view.image if token not in chosen]
            likeness = {token: cosine(states[token], states[pivot]) for token in rest}
            chosen += sorted(rest, key=likeness.__getitem__)[:quota]
        return sorted(chosen)

    return rule


@torch.no_grad()
@pytest.mark.parametrize("keep", [4, 6, 7, 12, 15, 20, 23])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("quirks", ["official", "fixed"])
def test_pivots_take_turns_to_add_what_is_least_like_them(keep, positions, quirks):
    pruner = Dart(quirks=quirks)
    check(pruner, keep, positions, rule=naive(pruner))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 20])
def test_every_count_is_met_also_below_the_number_of_pivots(count):
    pruner = Dart(layer=8)
    check(pruner, count, "original", rule=naive(pruner), schedule=staged(PATCHES, LAYERS, (2,), [count]))


def test_pivots_of_the_image_alone_are_possible():
    pruner = Dart(image_pivots=2, text_pivots=0)
    check(pruner, 9, "original", rule=naive(pruner))
    assert len(layers_of(pruner, 9)[1]) == pruner.schedule(PATCHES, LAYERS, 9).stages[0].keep
