"""Every method that prunes inside the language model, found by listing the folder, keeps the same promises."""

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.contract import in_llm
from stage2_prune.contract.check import DTYPES
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.trained_inside import TrainedInside

CLASSES = {name: found for name, found in plugin.find_all(pruners, Pruner).items() if found.place == "in_llm"}


@pytest.fixture(params=CLASSES)
def pruner(request):
    return DTYPES[0].ready(CLASSES[request.param]())


@pytest.fixture(params=DTYPES, ids=str)
def case(request):
    return request.param


def test_every_method_is_an_in_llm_pruner_on_a_schedule(pruner):
    in_llm.SCHEDULED.check(pruner, DTYPES[0])


def test_every_feasible_budget_is_kept_to_the_token_in_raster_order(pruner, case):
    in_llm.KEPT.check(pruner, case)


def test_a_question_keeps_the_same_patches_alone_and_in_a_batch(pruner):
    in_llm.ALONE.check(pruner, DTYPES[0])


def test_the_same_question_is_answered_alike_twice_and_its_embeddings_are_not_written_to(pruner, case):
    in_llm.TWICE.check(pruner, case)


def test_keeping_every_patch_gives_the_bits_of_the_stock_model(pruner, case):
    in_llm.EVERYTHING.check(pruner, case)


@pytest.mark.parametrize("name", [name for name, found in CLASSES.items() if issubclass(found, TrainedInside)])
def test_a_training_reaches_the_module_and_computes_what_the_stock_model_does_where_all_is_kept(name, case):
    in_llm.LEARNT.check(case.ready(CLASSES[name]()), case)


def test_both_dtypes_are_checked():
    assert {case.dtype for case in DTYPES} == {torch.float32, torch.bfloat16}
