"""Methods inside the language model that are trained by drawn decisions: hard forwards, soft backwards, held to a ratio."""

import pytest
import torch

from stage2_prune.pruners.dynamic_llava import DynamicLlava
from stage2_prune.pruners.lv_pruning import LvPruning
from stage2_prune.pruning.in_llm import Site
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.training.forward.layered import Layered
from stage2_prune.training.step import frozen
from tests.stage2_prune.small_llama import LAYERS, PATCHES, WIDTH, small_language
from tests.stage2_prune.training.test_layered import LESSONS, looked_at, packs, patches

SPEC = ModuleSpec((4, 6), {}, WIDTH)
METHODS = [DynamicLlava(width=16, heads=2), LvPruning(width=16, heads=2)]


def at(progress):
    return Practice(6, progress, patches())


def test_a_decision_is_hard_its_gradient_soft_and_its_ratio_held_to_the_budget():
    scores = torch.linspace(-6, 6, PATCHES)[None].requires_grad_()
    present = torch.ones(1, PATCHES)
    present[0, ::2] = 0
    torch.manual_seed(0)
    decision = DynamicLlava(ratio_weight=10).decide(scores, present, 6, at(0.0))
    share = decision.share.detach()
    assert share.unique().tolist() == pytest.approx([1e-4, 1.0])
    kept = (present * (share == 1)).sum() / PATCHES
    torch.testing.assert_close(decision.losses["ratio"].detach(), 10 * (6 / PATCHES - kept)[None] ** 2)
    decision.share.sum().backward()
    assert (scores.grad > 0).all()


def test_decisions_harden_in_the_course_of_a_training_and_are_drawn_from_torchs_generator():
    scores = torch.zeros(4, 1000, requires_grad=True)
    slopes = []
    for progress in (0.0, 0.5, 1.0):
        scores.grad = None
        torch.manual_seed(1)
        first = DynamicLlava().decide(scores, torch.ones(4, 1000), 500, at(progress)).share
        torch.manual_seed(1)
        assert torch.equal(first, DynamicLlava().decide(scores, torch.ones(4, 1000), 500, at(progress)).share)
        first.sum().backward()
        slopes.append(scores.grad.max().item())
        assert abs((first == 1).float().mean() - 0.5) < 0.05
    assert slopes == pytest.approx([0.25 / temperature for temperature in (1.0, 0.1**0.5, 0.1)], rel=0.01)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_answers_teach_the_module_and_an_evaluation_keeps_the_highest_logits(method):
    language, pruner = small_language(), method.fresh(SPEC, seed=0)
    lessons = [group[:1] for group in LESSONS]
    packed, schedule = packs(lessons), pruner.schedule(PATCHES, LAYERS, 12)
    torch.manual_seed(0)
    with frozen(language.model):
        course = Layered(language, patches(), packed, pruner.asks)
        found = pruner.teach(course, looked_at(), at(0.0), schedule)
        pairs = zip(found.logits, packed, strict=True)
        loss = sum(torch.nn.functional.cross_entropy(logits, one.answer) for logits, one in pairs)
        loss.backward()
    assert found.losses["ratio"].shape == (len(lessons),)
    reached = [name for name, one in pruner.module.named_parameters() if one.grad is not None and one.grad.any()]
    assert len(reached) > 4
    with torch.no_grad():
        course = Layered(language, patches(), packed, pruner.asks)
        course.reach(schedule.stages[0].layer)
        for site in course.sites():
            kept = pruner.drop(site, 5).index
            assert kept.tolist() == sorted(pruner.score(site).topk(5).indices.tolist())


def test_the_predictor_reads_all_tokens_and_a_module_of_lv_pruning_the_question():
    hidden = torch.randn(30, WIDTH, generator=torch.Generator().manual_seed(0))
    other = hidden.clone()
    other[2 + 9] += 1  # a visual token
    asked = hidden.clone()
    asked[-2] += 1  # a token of the question
    decoder = small_language().model.model
    rotary = (torch.ones(30, 8), torch.zeros(30, 8))
    with torch.no_grad():
        for method, by_others, by_text in ((METHODS[0], True, False), (METHODS[1], False, True)):
            pruner = method.fresh(SPEC, seed=0)
            own, changed, question = (
                pruner.score(Site.entering(1, 2, 20, states, states, rotary, decoder))
                for states in (hidden, other, asked)
            )
            assert bool((own != changed).sum() > 1) == by_others and own[9] != changed[9]
            assert bool((own != question).any()) == by_text


def test_a_fifth_of_the_tokens_is_the_published_share():
    schedule = DynamicLlava().published(576, 32)["20%"]
    assert schedule.layers == (2,) and schedule.stages[0].keep == 115
    assert DynamicLlava().schedule(576, 32, schedule.mean) == schedule
