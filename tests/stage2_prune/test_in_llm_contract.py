"""Every method that prunes inside the language model, found by listing the folder, keeps the same promises."""

import pytest
import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.errors import Infeasible
from stage2_prune.language.assemble import assemble, gather_kept
from stage2_prune.language.generate import generate
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner
from tests.stage2_prune.small_llama import LAYERS, PATCHES, PROMPTS, WIDTH, answers, kept_by, small_language
from tests.stage2_prune.tokens import visual_tokens

CLASSES = {name: found for name, found in plugin.find_all(pruners, Pruner).items() if found.place == "in_llm"}
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=CLASSES)
def pruner(request):
    return CLASSES[request.param]()


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def language(request):
    return small_language(request.param)


def asked(language, pruner, schedule, rows=(0, 1, 2)):
    """Questions about what a method lets enter, each about an image of its own."""
    tokens = visual_tokens((4, PATCHES // 4))
    pruned = pruner.prune(tokens, schedule.entering)
    projected = torch.randn(3, PATCHES, WIDTH, generator=torch.Generator().manual_seed(5)).to(language.dtype)
    visual, prompts = gather_kept(projected, pruned), [PROMPTS[row] for row in rows]
    return assemble(language, prompts, visual[list(rows)], pruned.index[list(rows)], PATCHES, pruner.positions)


def feasible(pruner):
    found = {}
    for keep in (0,) if pruner.budget == "fixed" else range(1, PATCHES + 1):
        try:
            found[keep] = pruner.schedule(PATCHES, LAYERS, keep)
        except Infeasible:
            continue
    return found


def test_every_method_is_an_in_llm_pruner_on_a_schedule(pruner):
    assert isinstance(pruner, InLLMPruner) and pruner.budget in ("schedule", "fixed")
    schedules = feasible(pruner)
    assert len(schedules) >= (1 if pruner.budget == "fixed" else PATCHES // 2)
    assert all(list(one.tokens_per_layer) == sorted(one.tokens_per_layer, reverse=True) for one in schedules.values())


def test_every_feasible_budget_is_kept_to_the_token_in_raster_order(language, pruner):
    for schedule in feasible(pruner).values():
        for kept in kept_by(language, pruner, schedule, pruner.positions, asked(language, pruner, schedule)):
            assert list(kept) == list(schedule.layers)
            for stage in schedule.stages:
                patches = [patch for patch in kept[stage.layer] if patch >= 0]
                merged = len(kept[stage.layer]) - len(patches)
                assert patches == sorted(set(patches)) and kept[stage.layer][: len(patches)] == patches
                assert len(kept[stage.layer]) == stage.keep + stage.merged and merged >= stage.merged


def test_a_question_keeps_the_same_patches_alone_and_in_a_batch(pruner):
    language = small_language()
    for schedule in list(feasible(pruner).values())[::4]:
        together = kept_by(language, pruner, schedule, pruner.positions, asked(language, pruner, schedule))
        for row in range(len(PROMPTS)):
            batch = asked(language, pruner, schedule, [row])
            assert kept_by(language, pruner, schedule, pruner.positions, batch)[0] == together[row]


def test_the_same_question_is_answered_alike_twice_and_its_embeddings_are_not_written_to(language, pruner):
    schedule = next(iter(feasible(pruner).values()))
    batch = asked(language, pruner, schedule)
    before = batch.inputs_embeds.clone()
    first, second = (answers(language, pruner, schedule, pruner.positions, batch, 3) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and torch.equal(batch.inputs_embeds, before)


def test_keeping_every_patch_gives_the_bits_of_the_stock_model(language, pruner):
    if pruner.budget == "schedule":
        schedule = pruner.schedule(PATCHES, LAYERS, PATCHES)
        batch = asked(language, pruner, schedule)
        said, stock = answers(language, pruner, schedule, pruner.positions, batch, 3), generate(language, batch, 3)
        assert torch.equal(said.logits, stock.logits) and torch.equal(said.tokens, stock.tokens)
