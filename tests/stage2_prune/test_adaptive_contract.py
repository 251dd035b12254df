"""Methods that decide by themselves how many tokens an image keeps: what is reported is what was returned."""

from dataclasses import fields
from itertools import product
from typing import get_args

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.contract import adaptive, every, merging
from stage2_prune.contract.rule import Case, pruned
from stage2_prune.pruning.pruner import Pruner
from tests.stage2_prune.tokens import long_tailed, narrow, visual_tokens

GRIDS = [(4, 4), (3, 5), (1, 7), (1, 1), (8, 9), (24, 24)]
NEIGHBOURS = 33
"""Patches that a token of PruMerge is made of."""


def variants(found: type[Pruner]) -> list[Pruner]:
    """A method with every choice of its switches, those that decide by themselves."""
    choices = {one.name: (True, False) if one.type is bool else get_args(one.type) for one in fields(found)}
    switches = {name: said for name, said in choices.items() if all(isinstance(value, (bool, str)) for value in said)}
    named = [name for name, said in switches.items() if said]
    made = (
        narrow(found, **dict(zip(named, chosen, strict=True)))
        for chosen in product(*(switches[name] for name in named))
    )
    return [pruner for pruner in made if pruner.adaptive]


ADAPTIVE = [
    pruner
    for found in plugin.find_all(pruners, Pruner).values()
    if found.place == "before_llm" and found().budget != "fixed"
    for pruner in variants(found)
]


MERGING = [pruner for pruner in ADAPTIVE if not pruner.takes_budget]


@pytest.fixture(params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def case(request):
    patches = request.param[0] * request.param[1]
    return Case(request.param, images=4, keeps=tuple(sorted({1, -(-patches // 2), patches})))


@pytest.fixture(params=ADAPTIVE, ids=str)
def pruner(request, case):
    return case.ready(request.param)


@pytest.fixture(params=MERGING, ids=str)
def merging_pruner(request):
    return request.param


def test_prumerge_its_plus_trim_and_two_trained_methods_can_decide_and_none_does_unless_asked_to():
    assert {type(pruner).__name__ for pruner in ADAPTIVE} == {"PruMerge", "Trim", "GlimpsePrune", "StepPrune"}
    for found in {type(pruner) for pruner in ADAPTIVE}:
        assert not found().adaptive and found().budget == "exact"


def test_what_is_reported_is_what_was_returned(pruner, case):
    adaptive.REPORTED.check(pruner, case)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid[0] * grid[1] > NEIGHBOURS], ids=str)
def test_no_token_is_there_twice(merging_pruner, grid):
    """On smaller grids every token of PruMerge is made of all patches, and they may be equal."""
    tokens = long_tailed(visual_tokens(grid, images=4))
    found = pruned(merging_pruner, tokens, tokens.patches)
    for image, count in enumerate(found.counts.tolist()):
        assert len(found.merge.weights[image, :count].unique(dim=0)) == count


@pytest.mark.parametrize("pruner", ADAPTIVE, ids=str)
def test_images_keep_numbers_of_their_own(pruner):
    case = Case((24, 24), images=4)
    keep = pruner.asked_tokens(case.tokens().patches, 64)
    assert len(set(pruned(case.ready(pruner), case.tokens(), keep).counts.tolist())) > 1


def test_an_image_keeps_as_many_alone_as_in_a_batch_and_the_same(pruner, case):
    adaptive.ALONE.check(pruner, case)


@pytest.mark.parametrize(
    "rule", [every.DECLARES, every.NEIGHBOURS, every.TWICE, every.UNWRITTEN], ids=lambda rule: rule.says
)
def test_the_same_image_is_pruned_alike_twice_and_nothing_is_written_to(pruner, case, rule):
    rule.check(pruner, case)


@pytest.mark.parametrize("pruner", ADAPTIVE, ids=str)
def test_half_precision_features_are_pruned_too(pruner):
    case = Case((8, 9), images=4, dtype=torch.bfloat16)
    adaptive.REPORTED.check(case.ready(pruner), case)


def test_the_tokens_can_be_made_and_what_is_behind_the_counts_stays_padding(merging_pruner, case):
    merging.MADE.check(merging_pruner, case)
