"""Methods that decide by themselves how many tokens an image keeps: what is reported is what was returned."""

from dataclasses import fields, replace
from itertools import product
from typing import get_args

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged
from tests.stage2_prune.tokens import visual_tokens

GRIDS = [(4, 4), (3, 5), (1, 7), (1, 1), (8, 9), (24, 24)]
NEIGHBOURS = 33
"""Patches that a token of PruMerge is made of."""


def variants(found: type[Pruner]) -> list[Pruner]:
    """A method with every choice of its switches, those that decide by themselves."""
    choices = {one.name: (True, False) if one.type is bool else get_args(one.type) for one in fields(found)}
    switches = {name: said for name, said in choices.items() if all(isinstance(value, (bool, str)) for value in said)}
    named = [name for name, said in switches.items() if said]
    made = (found(**dict(zip(named, chosen, strict=True))) for chosen in product(*(switches[name] for name in named)))
    return [pruner for pruner in made if pruner.adaptive]


ADAPTIVE = [
    pruner
    for found in plugin.find_all(pruners, Pruner).values()
    if found.place == "before_llm" and found().budget != "fixed"
    for pruner in variants(found)
]


def long_tailed(grid: tuple[int, int], images: int = 4, dtype: torch.dtype = torch.float32) -> VisualTokens:
    """Attention with outliers, as that of a real tower."""
    tokens = visual_tokens(grid, images=images, dtype=dtype)
    logits = torch.randn(images, tokens.patches, generator=torch.Generator().manual_seed(1))
    return replace(tokens, arrays=dict(tokens.arrays) | {"last_layer_attention": (1.3 * logits).softmax(-1)})


@pytest.fixture(params=ADAPTIVE, ids=str)
def pruner(request):
    return request.param


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def tokens(request):
    return long_tailed(request.param)


def pruned(pruner, tokens):
    return pruner.prune(tokens.only(pruner.needs, pruner.reads), tokens.patches)


def test_prumerge_its_plus_and_trim_can_decide_and_none_does_unless_asked_to():
    assert {type(pruner).__name__ for pruner in ADAPTIVE} == {"PruMerge", "Trim"}
    for found in {type(pruner) for pruner in ADAPTIVE}:
        assert not found().adaptive and found().budget == "exact"


def test_what_is_reported_is_what_was_returned(pruner, tokens):
    found = pruned(pruner, tokens)
    assert found.counts is not None and found.counts.shape == (4,) and found.counts.dtype == torch.long
    assert ((found.counts >= 1) & (found.counts <= tokens.patches)).all()
    assert found.kept == found.counts.max()
    for weights, count in zip(found.merge.weights, found.counts.tolist(), strict=True):
        assert (weights[:count] != 0).any(-1).all(), "a token that is made of nothing"
        if tokens.patches > NEIGHBOURS:  # else every token of PruMerge is made of all patches, and they may be equal
            assert len(weights[:count].unique(dim=0)) == count, "a token that is there twice"
        assert (weights[count:] == 0).all(), "padding that is a token"


def test_images_keep_numbers_of_their_own(pruner):
    assert len(set(pruned(pruner, long_tailed((24, 24))).counts.tolist())) > 1


def test_an_image_keeps_as_many_alone_as_in_a_batch_and_the_same(pruner, tokens):
    together = pruned(pruner, tokens)
    for image in range(4):
        alone, count = pruned(pruner, tokens.one(image)), together.counts[image]
        assert alone.counts.tolist() == [count]
        assert torch.equal(alone.merge.weights[0], together.merge.weights[image, :count])


def test_the_same_image_is_pruned_alike_twice_and_nothing_is_written_to(pruner, tokens):
    first, again = pruned(pruner, tokens), pruned(pruner, long_tailed(tokens.grid))
    assert torch.equal(first.merge.weights, again.merge.weights) and torch.equal(first.counts, again.counts)
    for name, array in long_tailed(tokens.grid).arrays.items():
        assert torch.equal(tokens.arrays[name], array)


def test_half_precision_features_are_pruned_too(pruner):
    test_what_is_reported_is_what_was_returned(pruner, long_tailed((8, 9), dtype=torch.bfloat16))


def test_the_tokens_can_be_made_and_what_is_behind_the_counts_stays_padding(pruner, tokens):
    batch = FeatureBatch((), torch.arange(4), tokens.only(pruner.needs, pruner.reads), tokens.arrays["projected"])
    found = pruned(pruner, tokens)
    made = make_merged(found, batch, lambda raw: raw * 2)
    assert torch.equal(made.counts, found.counts) and made.tokens.shape[:2] == found.merge.weights.shape[:2]
    assert torch.isfinite(made.tokens).all()
