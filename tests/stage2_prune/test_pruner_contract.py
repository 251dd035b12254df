"""Every pruner, found by listing the folder, keeps the same promises."""

import dataclasses
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import plugin
from stage1_extract.encoding.arrays import NAMES
from stage2_prune import pruners
from stage2_prune.contract import every, selection, trained
from stage2_prune.contract.check import DRAWN
from stage2_prune.contract.rule import Case
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from tests.stage2_prune.tokens import REAL, merges, narrow, visual_tokens

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


VARIANTS = {name: narrow(found) for name, found in CLASSES.items()} | {
    f"{name}-{quirks}": found(quirks=quirks)
    for name, found in CLASSES.items()
    for quirks in sorted(other_quirks(found))
}


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def case(request):
    return Case(request.param)


@pytest.fixture(params=VARIANTS)
def pruner(request, case):
    return case.ready(VARIANTS[request.param])


def pruned(pruner, tokens, keep):
    with torch.no_grad():
        return pruner.prune(tokens.only(pruner.needs, pruner.reads), keep)


def test_a_budget_is_kept_to_the_token_with_distinct_patches(pruner, case):
    selection.BUDGET.check(pruner, case)


def test_every_patch_is_kept_where_all_are_asked_for(pruner, case):
    selection.EVERYTHING.check(pruner, case)


def test_a_method_looks_at_nothing_but_what_it_declares(pruner, case):
    every.DECLARES.check(pruner, case)


def test_an_image_is_pruned_alike_alone_and_in_a_batch(pruner, case):
    every.ALONE.check(pruner, case)


def test_the_order_of_the_images_in_a_batch_does_not_matter(pruner, case):
    every.NEIGHBOURS.check(pruner, case)


def test_the_same_image_is_pruned_alike_twice(pruner, case):
    every.TWICE.check(pruner, case)


@pytest.mark.parametrize("name", [name for name, made in VARIANTS.items() if made.nested])
def test_the_first_k_of_one_ranking_are_the_choice_at_every_budget_k(name, case):
    selection.NESTED.check(case.ready(VARIANTS[name]), case)


def test_every_score_and_every_greedy_order_says_that_it_is_nested():
    assert {name for name, found in EVERY.items() if found.nested} == {
        "cd_pruner", "cls_attention", "covipal", "diff_prune", "div_prune", "feature_norm", "first_last", "g_prune",
        "glimpse_prune", "gumbel_scorer", "hired", "learned_scorer", "mm_tok", "question_scorer", "random", "random_inside",
        "received_attention", "scale_gate", "scope", "step_prune", "vision_selector", "zoo_prune",
    }  # fmt: skip


def test_the_cached_arrays_are_not_written_to(pruner, case):
    every.UNWRITTEN.check(pruner, case)


def test_half_precision_features_are_pruned_too(pruner, case):
    selection.BUDGET.check(pruner, replace(case, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_promises_hold_on_24x24_patches_alone_and_among_8(name, dtype):
    case = Case(REAL_GRID, images=8, dtype=dtype, keeps=REAL_BUDGETS)
    pruner = case.ready(VARIANTS[name])
    selection.BUDGET.check(pruner, case)
    for turn, keep in enumerate(case.budgets(pruner)):  # one image each, as all of them at every budget take minutes
        tokens = case.tokens()
        alone, together = (pruned(pruner, given, keep) for given in (tokens.one(turn % 8), tokens))
        assert torch.equal(alone.index[0], together.index[turn % 8])


@pytest.mark.parametrize("name", CLASSES)
def test_an_image_is_pruned_alike_alone_and_in_a_batch_at_real_widths(name):
    case = Case(REAL_GRID, images=2, widths=REAL, keeps=(64,))
    every.ALONE.check(case.ready(CLASSES[name]()), case)


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_the_fields_of_a_frozen_dataclass_and_an_unknown_one_is_an_error(name):
    every.parameters_are_fields(EVERY[name])


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if issubclass(found, TrainedPruner)])
def test_soft_weights_lie_between_0_and_1_and_are_exactly_1_when_everything_is_kept(name, case):
    every.SOFT.check(case.ready(VARIANTS[name]), case)


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if issubclass(found, TrainedPruner)])
def test_a_training_step_shows_the_whole_image_where_everything_is_kept_and_returns_the_named_losses(name, case):
    trained.PRACTISED.check(case.ready(VARIANTS[name]), case)


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if found.randomised])
def test_a_draw_hangs_on_the_seed_and_on_the_image_and_on_nothing_drawn_before(name):
    every.SEEDED.check(CLASSES[name](), DRAWN)


def test_the_arrays_of_the_contract_are_those_that_a_store_may_hold():
    assert set(visual_tokens().arrays) == set(NAMES)


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
