"""Every pruner, found by listing the folder, keeps the same promises."""

import dataclasses
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from configs import plugin
from stage2_prune import pruners
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from tests.stage2_prune.tokens import REAL, merges, ready, visual_tokens

GRIDS = [(4, 4), (3, 5), (1, 7), (5, 7)]
REAL_GRID = (24, 24)
REAL_BUDGETS = (1, 2, 3, 5, 64, 100, 128, 191, 192, 575, 576)
EVERY = plugin.find_all(pruners, Pruner)
CLASSES = {name: found for name, found in EVERY.items() if found.place == "before_llm" and not merges(found())}
"""Those inside the language model: test_in_llm_contract; those that merge: test_merging_contract."""


def other_quirks(found):
    """`official`, where it is not the default, is what cannot keep these promises: the method's own test has it."""
    field = {field.name: field for field in dataclasses.fields(found)}.get("quirks")
    return set(get_args(field.type)) - {field.default, "official"} if field else ()


VARIANTS = {name: found() for name, found in CLASSES.items()} | {
    f"{name}-{quirks}": found(quirks=quirks)
    for name, found in CLASSES.items()
    for quirks in sorted(other_quirks(found))
}


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def grid(request):
    return request.param


@pytest.fixture(params=VARIANTS)
def pruner(request, grid):
    return ready(VARIANTS[request.param], grid)


def budgets(pruner, patches, wanted=None):
    return [pruner.fixed_keep(patches)] if pruner.budget == "fixed" else wanted or range(1, patches + 1)


def pruned(pruner, tokens, keep):
    with torch.no_grad():
        return pruner.prune(tokens.only(pruner.needs, pruner.reads), keep)


def check(pruner, index, images, keep, patches):
    """As many distinct patches as asked for, in raster order unless the method has its own; all if all are asked for."""
    assert index.shape == (images, keep) and index.dtype == torch.long
    in_raster_order = index.sort(dim=-1).values
    if pruner.order == "raster" and pruner == type(pruner)():  # quirks of a method may change its order
        assert torch.equal(index, in_raster_order)
    assert (in_raster_order.diff(dim=-1) > 0).all()
    assert ((index >= 0) & (index < patches)).all()


def test_a_budget_is_kept_to_the_token_with_distinct_patches(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in budgets(pruner, tokens.patches):
        check(pruner, pruned(pruner, tokens, keep).index, 3, keep, tokens.patches)


def test_an_image_is_pruned_alike_alone_and_in_a_batch(pruner, grid):
    tokens = visual_tokens(grid)
    for keep in budgets(pruner, tokens.patches):
        together = pruned(pruner, tokens, keep).index
        image = keep % 3
        assert torch.equal(pruned(pruner, tokens.one(image), keep).index[0], together[image])


def test_the_same_image_is_pruned_alike_twice(pruner, grid):
    tokens = visual_tokens(grid)
    keep = budgets(pruner, tokens.patches)[len(budgets(pruner, tokens.patches)) // 2]
    assert torch.equal(pruned(pruner, tokens, keep).index, pruned(pruner, visual_tokens(grid), keep).index)


def test_the_cached_arrays_are_not_written_to(pruner, grid):
    tokens = visual_tokens(grid)
    pruned(pruner, tokens, budgets(pruner, tokens.patches)[len(budgets(pruner, tokens.patches)) // 2])
    for name, array in visual_tokens(grid).arrays.items():
        assert torch.equal(tokens.arrays[name], array)


def test_half_precision_features_are_pruned_too(pruner, grid):
    tokens = visual_tokens(grid, dtype=torch.bfloat16)
    for keep in budgets(pruner, tokens.patches):
        check(pruner, pruned(pruner, tokens, keep).index, 3, keep, tokens.patches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_promises_hold_on_24x24_patches_alone_and_among_8(name, dtype):
    pruner = ready(VARIANTS[name], REAL_GRID)
    tokens = visual_tokens(REAL_GRID, images=8, dtype=dtype)
    for turn, keep in enumerate(budgets(pruner, tokens.patches, REAL_BUDGETS)):
        together = pruned(pruner, tokens, keep).index
        check(pruner, together, 8, keep, tokens.patches)
        image = turn % 8
        assert torch.equal(pruned(pruner, tokens.one(image), keep).index[0], together[image])


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_is_pruned_alike_alone_and_in_a_batch_at_real_widths(name):
    pruner = ready(CLASSES[name](), REAL_GRID, REAL)
    tokens = visual_tokens(REAL_GRID, widths=REAL, images=2)
    keep = budgets(pruner, tokens.patches, [64])[0]
    together = pruned(pruner, tokens, keep).index
    for image in range(2):
        assert torch.equal(pruned(pruner, tokens.one(image), keep).index[0], together[image])


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_the_fields_of_a_frozen_dataclass_and_an_unknown_one_is_an_error(name):
    assert dataclasses.is_dataclass(EVERY[name]) and EVERY[name].__dataclass_params__.frozen
    assert TypeAdapter(EVERY[name]).validate_python({}) == EVERY[name]()
    with pytest.raises(ValidationError):
        TypeAdapter(EVERY[name]).validate_python({"no_such_parameter": 1})


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if issubclass(found, TrainedPruner)])
def test_soft_weights_lie_between_0_and_1_and_are_exactly_1_when_everything_is_kept(name, grid):
    tokens = visual_tokens(grid)
    pruner = ready(CLASSES[name](), grid)
    for keep in (1, tokens.patches // 2, tokens.patches):
        soft = pruner.soft(tokens.only(pruner.needs, pruner.reads), keep)
        assert soft.shape == (3, tokens.patches)
        assert ((soft >= 0) & (soft <= 1)).all()
    assert torch.equal(soft, torch.ones_like(soft))


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if found.randomised])
def test_a_draw_hangs_on_the_seed_and_on_the_image_and_on_nothing_drawn_before(name):
    tokens = visual_tokens((8, 8))
    alike = replace(tokens, arrays={name: array[:1].expand_as(array) for name, array in tokens.arrays.items()})
    first, other = (pruned(CLASSES[name](seed=seed), alike, 16).index for seed in (0, 1))
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    torch.rand(1)
    state = torch.get_rng_state()
    assert torch.equal(pruned(CLASSES[name](seed=0), alike, 16).index, first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_random_budget_lies_in_a_larger_one():
    small, large = (pruned(CLASSES["random"](), visual_tokens((8, 8)), keep).index for keep in (16, 32))
    assert all(set(one.tolist()) <= set(other.tolist()) for one, other in zip(small, large, strict=True))


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
