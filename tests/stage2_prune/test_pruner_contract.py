"""Every pruner, found by listing the folder, keeps the same promises."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruner import Pruner, TrainedPruner
from stage2_prune.top_k import top_k
from tests.stage2_prune.tokens import ready, visual_tokens

GRIDS = [(4, 4), (3, 5), (1, 7)]
CLASSES = plugin.find_all(pruners, Pruner)
SELECTING = [name for name, found in CLASSES.items() if found.prune is Pruner.prune]


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def grid(request):
    return request.param


@pytest.fixture(params=SELECTING)
def pruner(request, grid):
    return ready(CLASSES[request.param](), grid)


def budgets(pruner, patches):
    return [pruner.fixed_keep(patches)] if pruner.budget == "fixed" else range(1, patches + 1)


def pruned(pruner, tokens, keep):
    with torch.no_grad():
        return pruner.prune(tokens.only(pruner.needs), keep)


def test_a_budget_is_kept_to_the_token_with_distinct_patches_in_raster_order(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in budgets(pruner, tokens.patches):
        index = pruned(pruner, tokens, keep).index
        assert index.shape == (3, keep) and index.dtype == torch.long
        assert (index.diff(dim=-1) > 0).all()
        assert ((index >= 0) & (index < tokens.patches)).all()


def test_an_image_is_pruned_alike_alone_and_in_a_batch(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in budgets(pruner, tokens.patches):
        together = pruned(pruner, tokens, keep).index
        for image in range(3):
            assert torch.equal(pruned(pruner, tokens.one(image), keep).index, together[image : image + 1])


def test_the_same_image_is_pruned_alike_twice(pruner, grid):
    tokens = visual_tokens(grid)
    keep = budgets(pruner, tokens.patches)[0]
    assert torch.equal(pruned(pruner, tokens, keep).index, pruned(pruner, visual_tokens(grid), keep).index)


def test_keeping_every_patch_is_the_identity(pruner, grid):
    tokens = visual_tokens(grid)
    if tokens.patches in budgets(pruner, tokens.patches):
        index = pruned(pruner, tokens, tokens.patches).index
        assert torch.equal(index, torch.arange(tokens.patches).expand(3, -1))


def test_the_cached_arrays_are_not_written_to(pruner, grid):
    tokens = visual_tokens(grid)
    pruned(pruner, tokens, budgets(pruner, tokens.patches)[0])
    for name, array in visual_tokens(grid).arrays.items():
        assert torch.equal(tokens.arrays[name], array)


def test_half_precision_features_are_pruned_too(pruner, grid):
    tokens = visual_tokens(grid, dtype=torch.bfloat16)
    keep = budgets(pruner, tokens.patches)[0]
    assert pruned(pruner, tokens, keep).index.shape == (3, keep)


@pytest.mark.parametrize("name", CLASSES)
def test_parameters_are_the_fields_of_a_frozen_dataclass_and_an_unknown_one_is_an_error(name):
    assert dataclasses.is_dataclass(CLASSES[name]) and CLASSES[name].__dataclass_params__.frozen
    assert TypeAdapter(CLASSES[name]).validate_python({}) == CLASSES[name]()
    with pytest.raises(ValidationError):
        TypeAdapter(CLASSES[name]).validate_python({"no_such_parameter": 1})


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if issubclass(found, TrainedPruner)])
def test_soft_weights_lie_between_0_and_1_and_are_exactly_1_when_everything_is_kept(name, grid):
    tokens = visual_tokens(grid)
    pruner = ready(CLASSES[name](), grid)
    for keep in (1, tokens.patches // 2, tokens.patches):
        soft = pruner.soft(tokens.only(pruner.needs), keep)
        assert soft.shape == (3, tokens.patches)
        assert ((soft >= 0) & (soft <= 1)).all()
    assert torch.equal(soft, torch.ones_like(soft))


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if found.randomised])
def test_a_random_draw_hangs_on_the_seed_and_on_the_image_and_a_small_budget_lies_in_a_larger_one(name):
    tokens = visual_tokens((8, 8))
    first, other = (pruned(CLASSES[name](seed=seed), tokens, 16).index for seed in (0, 1))
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    larger = pruned(CLASSES[name](seed=0), tokens, 32).index
    assert all(set(small.tolist()) <= set(large.tolist()) for small, large in zip(first, larger, strict=True))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_uniform_grid_keeps_every_budget_on_every_grid_and_leaves_no_large_hole(rows, columns, data):
    keep = data.draw(st.integers(1, rows * columns))
    tokens = visual_tokens((rows, columns), images=1)
    index = CLASSES["uniform_grid"]().select(tokens, keep)[0]
    assert len(set(index.tolist())) == keep
    kept = torch.stack([index // columns, index % columns], -1).float()
    everywhere = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2).float()
    nearest = torch.cdist(everywhere, kept).min(-1).values.max()
    assert nearest <= 1.5 * (rows * columns / keep) ** 0.5 + max(rows, columns) / keep


def test_of_equal_scores_the_lower_patch_is_kept():
    scores = torch.tensor([[1.0, 3.0, 1.0, 3.0, 1.0]])
    assert top_k(scores, 3).tolist() == [[0, 1, 3]]


def test_scores_that_are_not_numbers_are_refused():
    from stage2_prune.errors import PrunerMisused

    with pytest.raises(PrunerMisused, match="NaN"):
        top_k(torch.tensor([[1.0, float("nan")]]), 1)


def test_feature_norm_and_cls_attention_rank_by_what_their_names_say():
    tokens = visual_tokens((4, 4))
    norm = CLASSES["feature_norm"]().select(tokens, 5)
    attention = CLASSES["cls_attention"]().select(tokens, 5)
    for image in range(3):
        raw, heads = tokens.arrays["raw"][image], tokens.arrays["cls_attention"][image]
        assert set(norm[image].tolist()) == set(raw.square().sum(-1).topk(5).indices.tolist())
        assert set(attention[image].tolist()) == set(heads.sum(0).topk(5).indices.tolist())
