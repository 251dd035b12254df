"""Every merging method, found by listing the folder, keeps the same promises (selections: test_pruner_contract.py)."""

from dataclasses import fields, replace
from typing import get_args

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged
from tests.stage2_prune.tokens import REAL, merges, visual_tokens

GRIDS = [(4, 4), (3, 5), (1, 7), (6, 2)]
CLASSES = [
    found for found in plugin.find_all(pruners, Pruner).values() if found.place == "before_llm" and merges(found())
]


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def grid(request):
    return request.param


def variants(found: type[Pruner]) -> list[Pruner]:
    """A method with its defaults, with every choice of its quirks, and with every switch turned."""
    choices = [
        {field.name: value}
        for field in fields(found)
        for value in ((True, False) if field.type is bool else get_args(field.type) if field.name == "quirks" else ())
    ]
    made = [found(**choice) for choice in [{}, *choices]]
    return list(dict.fromkeys(made))


@pytest.fixture(params=[one for found in CLASSES for one in variants(found)], ids=str)
def pruner(request):
    return request.param


def pruned(pruner, tokens, keep):
    with torch.no_grad():
        return pruner.prune(tokens.only(pruner.needs, pruner.reads), keep)


def same(one, other):
    return torch.equal(one.merge.weights, other.merge.weights) and (
        one.index is other.index is None or torch.equal(one.index, other.index)
    )


def check_budget(pruner, tokens, keep):
    found = pruned(pruner, tokens, keep)
    weights = found.merge.weights
    rows = tokens.patches + (weights.shape[2] > tokens.patches)
    assert weights.shape == (len(tokens.image_ids), keep, rows) and weights.dtype == torch.float32
    assert torch.isfinite(weights).all() and (weights != 0).any(-1).all(), "a token that is made of nothing"
    assert rows == tokens.patches or (found.merge.space == "raw" and "cls_hidden" in pruner.needs)
    assert found.merge.space == "projected" or "raw" in pruner.needs
    if found.index is not None:
        assert found.index.shape == weights.shape[:2]
        assert (found.index.diff(dim=-1) > 0).all()
        assert ((found.index >= 0) & (found.index < tokens.patches)).all()
        assert (weights.gather(2, found.index[..., None]) > 0).all(), "a token stands where it has no part"


def test_a_budget_is_kept_to_the_token_and_every_token_is_made_of_something(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in range(1, tokens.patches + 1):
        check_budget(pruner, tokens, keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_geometry_takes_published_and_odd_budgets(pruner, dtype):
    tokens = visual_tokens((24, 24), images=1, dtype=dtype)
    for keep in (1, 2, 3, 5, 64, 100, 128, 191, 192, 575, 576):
        check_budget(pruner, tokens, keep)


def test_an_image_is_merged_alike_alone_and_in_a_batch(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in range(1, tokens.patches + 1):
        together = pruned(pruner, tokens, keep)
        for image in range(3):
            alone = pruned(pruner, tokens.one(image), keep)
            assert torch.equal(alone.merge.weights[0], together.merge.weights[image])
            assert alone.index is None or torch.equal(alone.index[0], together.index[image])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_is_merged_alike_alone_and_in_a_batch_of_eight_at_the_published_geometry(pruner, dtype):
    tokens = visual_tokens((24, 24), images=8, dtype=dtype)
    together = pruned(pruner, tokens, 101).merge.weights
    for image in (0, 7):
        assert torch.equal(pruned(pruner, tokens.one(image), 101).merge.weights[0], together[image])


@pytest.mark.parametrize("pruner", [found() for found in CLASSES], ids=str)
def test_an_image_is_merged_alike_alone_and_in_a_batch_at_real_widths(pruner):
    tokens = visual_tokens((24, 24), images=3, widths=REAL)
    together = pruned(pruner, tokens, 64).merge.weights
    for image in range(3):
        assert torch.equal(pruned(pruner, tokens.one(image), 64).merge.weights[0], together[image])


def test_the_same_image_is_merged_alike_twice(pruner, grid):
    for keep in (1, 3, grid[0] * grid[1]):
        assert same(pruned(pruner, visual_tokens(grid), keep), pruned(pruner, visual_tokens(grid), keep))


def test_the_cached_arrays_are_not_written_to(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in (1, 3, tokens.patches):
        pruned(pruner, tokens, keep)
    for name, array in visual_tokens(grid).arrays.items():
        assert torch.equal(tokens.arrays[name], array)


def test_half_precision_features_are_merged_in_float32(pruner, grid):
    tokens = visual_tokens(grid, dtype=torch.bfloat16)
    upcast = visual_tokens(grid, dtype=torch.bfloat16)
    arrays = {name: array.float() for name, array in upcast.arrays.items()}
    upcast = replace(upcast, arrays=arrays)
    for keep in range(1, tokens.patches + 1):
        check_budget(pruner, tokens, keep)
        assert same(pruned(pruner, tokens, keep), pruned(pruner, upcast, keep))


@pytest.mark.parametrize("value", [0, 1])
def test_an_image_of_equal_patches_is_merged_to_the_token(pruner, grid, value):
    tokens = visual_tokens(grid)
    arrays = {name: torch.full_like(array, value) for name, array in tokens.arrays.items()}
    blank = replace(tokens, arrays=arrays)
    for keep in range(1, tokens.patches + 1):
        weights = pruned(pruner, blank, keep).merge.weights
        assert weights.shape[1] == keep and torch.isfinite(weights).all()
        assert torch.equal(weights, pruned(pruner, blank, keep).merge.weights)


def test_the_merged_tokens_can_be_made(pruner, grid):
    tokens = visual_tokens(grid)
    batch = FeatureBatch((), torch.arange(3), tokens.only(pruner.needs, pruner.reads), tokens.arrays["projected"])
    for keep in (1, tokens.patches):
        made = make_merged(pruned(pruner, tokens, keep), batch, lambda raw: raw * 2)
        assert made.tokens.shape[:2] == (3, keep) and torch.isfinite(made.tokens).all()
