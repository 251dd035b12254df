"""Every merging method, found by listing the folder, keeps the same promises (selections: test_pruner_contract.py)."""

from dataclasses import fields
from typing import get_args

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.contract import every, merging
from stage2_prune.contract.rule import Case
from stage2_prune.pruning.pruner import Pruner
from tests.stage2_prune.tokens import REAL, merges

GRIDS = [(4, 4), (3, 5), (1, 7), (6, 2)]
PUBLISHED = (1, 2, 3, 5, 64, 100, 128, 191, 192, 575, 576)
CLASSES = [
    found for found in plugin.find_all(pruners, Pruner).values() if found.place == "before_llm" and merges(found())
]


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def case(request):
    return Case(request.param)


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


def test_a_budget_is_kept_to_the_token_and_every_token_is_made_of_something(pruner, case):
    merging.BUDGET.check(pruner, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_geometry_takes_published_and_odd_budgets(pruner, dtype):
    merging.BUDGET.check(pruner, Case((24, 24), images=1, dtype=dtype, keeps=PUBLISHED))


def test_a_method_looks_at_nothing_but_what_it_declares(pruner, case):
    every.DECLARES.check(pruner, case)


def test_an_image_is_merged_alike_alone_and_in_a_batch(pruner, case):
    every.ALONE.check(pruner, case)


def test_the_order_of_the_images_in_a_batch_does_not_matter(pruner, case):
    every.NEIGHBOURS.check(pruner, case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_image_is_merged_alike_alone_and_in_a_batch_of_eight_at_the_published_geometry(pruner, dtype):
    every.ALONE.check(pruner, Case((24, 24), images=8, dtype=dtype, keeps=(101,)))


@pytest.mark.parametrize("pruner", [found() for found in CLASSES], ids=str)
def test_an_image_is_merged_alike_alone_and_in_a_batch_at_real_widths(pruner):
    every.ALONE.check(pruner, Case((24, 24), widths=REAL, keeps=(64,)))


def test_the_same_image_is_merged_alike_twice(pruner, case):
    every.TWICE.check(pruner, case)


def test_the_cached_arrays_are_not_written_to(pruner, case):
    every.UNWRITTEN.check(pruner, case)


def test_half_precision_features_are_merged_in_float32(pruner, case):
    merging.IN_FLOAT32.check(pruner, case)


def test_an_image_of_equal_patches_is_merged_to_the_token(pruner, case):
    merging.BLANK.check(pruner, case)


def test_the_merged_tokens_can_be_made(pruner, case):
    merging.MADE.check(pruner, case)


def test_merged_tokens_have_an_index_or_the_class_says_that_positions_are_compact(pruner, case):
    merging.PLACED.check(pruner, case)
