"""The layers one by one over packed lessons: the stock call's bits where nothing is dropped, an evaluation's where it is hard."""

import pytest
import torch

from stage2_prune.contract.small_llama import LAYERS, PATCHES, WIDTH, small_language
from stage2_prune.errors import Infeasible
from stage2_prune.language.assemble import assemble
from stage2_prune.language.layer_loop import pruning_inside
from stage2_prune.pruners.layer_pruner import LayerPruner
from stage2_prune.pruning.in_llm import Drop, InLLMPruner
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Schedule, Stage
from stage2_prune.training.forward.layered import Layered
from stage2_prune.training.packed import Lesson, answer_logits_together, pack
from stage2_prune.training.step import checkpointing, frozen
from store.checkpoint.text import Prompt
from tests.stage2_prune.tokens import visual_tokens

LESSONS = [
    [Lesson(Prompt((1, 5), (7, 8, 9)), (10, 2)), Lesson(Prompt((1, 5), (11, 12)), (13, 14, 2))],
    [Lesson(Prompt((1, 5, 6), (7,)), (10, 2))],
    [Lesson(Prompt((1, 5), (7, 20, 21, 22, 23)), (9, 30, 31, 2))],
]
SPEC = ModuleSpec((4, 6), {"projected": (PATCHES, WIDTH)}, WIDTH)
IMAGES = len(LESSONS)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def language(request):
    return small_language(request.param)


@pytest.fixture(scope="module")
def exact():
    return small_language()


def packs(lessons=LESSONS):
    return [pack(group, torch.device("cpu")) for group in lessons]


def patches():
    return torch.randn(IMAGES, PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


def looked_at():
    tokens = visual_tokens((4, 6), IMAGES)
    return type(tokens)(tokens.image_ids, tokens.grid, {"projected": patches()})


def practice(keep):
    return Practice(keep, 0.0, patches())


@torch.no_grad()
def test_without_a_decision_the_stock_call_is_made_and_weights_of_1_change_no_bit_of_it(language):
    stock = answer_logits_together(language, patches(), None, packs())
    untouched, ones = (Layered(language, patches(), packs()) for _ in range(2))
    for layer in range(LAYERS):
        ones.reach(layer)
        ones.weigh(torch.ones(IMAGES, PATCHES))
    for expected, first, second in zip(stock, untouched.logits(), ones.logits(), strict=True):
        assert torch.equal(first, expected) and torch.equal(second, expected)


@torch.no_grad()
def test_before_its_layer_a_decision_touches_nothing_and_from_there_on_patches_of_weight_0_are_gone(exact):
    kept = torch.tensor([1, 4, 9, 17])
    hard = torch.zeros(IMAGES, PATCHES)
    hard[:, kept] = 1
    course, stock = Layered(exact, patches(), packs()), Layered(exact, patches(), packs())
    for one in (course, stock):
        one.reach(3)
    assert torch.equal(course.hidden, stock.hidden)
    course.weigh(hard)
    found = course.logits()
    for image, group in enumerate(LESSONS):
        said = torch.cat([asked_alone(exact, Stays(kept), len(kept), image, lesson) for lesson in group])
        torch.testing.assert_close(found[image], said, rtol=1e-4, atol=1e-5)


class Stays(InLLMPruner):
    """Keeps given patches from layer 3 on, in an evaluation."""

    def __init__(self, kept):
        self.kept = kept

    def schedule(self, patches, depth, keep, match="mean-tokens"):
        return Schedule(depth, patches, (Stage(3, keep),))

    def drop(self, site, keep):
        return Drop(self.kept)


@torch.no_grad()
def asked_alone(language, pruner, keep, image, lesson):
    """The logits of an answer in an evaluation, which drops tokens, with the answer behind the prompt."""
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    index = pruner.select(looked_at().at([image]), schedule.entering)
    visual = patches()[image][index]
    batch = assemble(language, [lesson.prompt], visual, index, PATCHES, "original")
    behind = torch.tensor([lesson.answer[:-1]])
    model = pruning_inside(language, pruner, schedule, "original").answering(batch.slots, behind.shape[1])
    end = batch.position_ids[:, -1:] + 1
    logits = model(
        inputs_embeds=torch.cat([batch.inputs_embeds, language.embed(behind)], 1),
        attention_mask=torch.ones(1, batch.slots.shape[1] + behind.shape[1], dtype=torch.long),
        position_ids=torch.cat([batch.position_ids, end + torch.arange(behind.shape[1])], 1),
    ).logits
    return logits[0, -len(lesson.answer) :]


@pytest.mark.parametrize("asking", [False, True])
@pytest.mark.parametrize("layers", [(0, 8, 16, 24), (4, 20)])
def test_at_temperature_0_a_training_computes_the_loss_of_an_evaluation_that_drops(exact, asking, layers):
    pruner = LayerPruner(layers=layers, hidden=16, temperature=1e-6, asking=asking).fresh(SPEC, seed=3)
    keep = 12
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    lessons = [group[:1] for group in LESSONS] if asking else LESSONS
    with torch.no_grad():
        taught = pruner.teach(Layered(exact, patches(), packs(lessons), asking), looked_at(), practice(keep), schedule)
        for image, group in enumerate(lessons):
            said = torch.cat([asked_alone(exact, pruner, keep, image, lesson) for lesson in group])
            torch.testing.assert_close(taught.logits[image], said, rtol=1e-4, atol=1e-4)
            answers = torch.tensor([token for lesson in group for token in lesson.answer])
            ours, theirs = (torch.nn.functional.cross_entropy(rows, answers) for rows in (taught.logits[image], said))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(schedule.stages) >= 2


def loss_of(language, pruner, keep=9, asking=False):
    """The loss through a model that is frozen already."""
    lessons = [group[:1] for group in LESSONS] if asking else LESSONS
    packed = packs(lessons)
    schedule = pruner.schedule(PATCHES, LAYERS, keep)
    taught = pruner.teach(Layered(language, patches(), packed, asking), looked_at(), practice(keep), schedule)
    pairs = zip(taught.logits, packed, strict=True)
    return sum(torch.nn.functional.cross_entropy(rows, one.answer, reduction="sum") for rows, one in pairs)


@pytest.mark.parametrize("asking", [False, True])
def test_the_gradient_reaches_every_network_and_nothing_of_the_language_model(language, asking):
    pruner = LayerPruner(hidden=16, temperature=1.0, asking=asking).fresh(SPEC, seed=0)
    with frozen(language.model):
        loss_of(language, pruner, asking=asking).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in pruner.module.parameters())
    assert all(one.grad is None for one in language.model.parameters())


def test_the_gradient_equals_finite_differences(exact):
    pruner = LayerPruner(hidden=4, temperature=1.0).fresh(SPEC, seed=0)
    weight = pruner.module.networks[1].score.weight
    with frozen(exact.model):
        loss_of(exact, pruner).backward()
    step = 1e-2
    for place in range(4):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[0, place] += sign * step
                values.append(loss_of(exact, pruner).item())
                weight[0, place] -= sign * step
        assert weight.grad[0, place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.03, abs=2e-3)


def test_images_that_share_a_forward_pass_have_the_losses_and_gradients_of_each_alone_and_of_computing_layers_again(
    exact,
):
    found = []
    for again in (False, True):
        pruner = LayerPruner(hidden=8, temperature=1.0).fresh(SPEC, seed=0)
        with frozen(exact.model), checkpointing(exact.model, again):
            loss_of(exact, pruner).backward()
        found.append([one.grad.clone() for one in pruner.module.parameters()])
    assert all(map(torch.equal, *found))
    together = Layered(exact, patches(), packs())
    pruner = LayerPruner(hidden=8).fresh(SPEC, seed=0)
    schedule = pruner.schedule(PATCHES, LAYERS, 9)
    with torch.no_grad():
        said = pruner.teach(together, looked_at(), practice(9), schedule).logits
        for image in range(IMAGES):
            one = Layered(exact, patches()[image : image + 1], packs(LESSONS[image : image + 1]))
            alone = pruner.teach(one, looked_at().at([image]), practice(9).at([image]), schedule).logits[0]
            torch.testing.assert_close(said[image], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_are_in_float32_where_the_model_computes_in_bfloat16_by_autocast_too(exact):
    pruner = LayerPruner(hidden=8).fresh(SPEC, seed=0)
    course = Layered(exact, patches(), packs())
    course.reach(2)
    alone = pruner.policy_inside(course)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pruner.policy_inside(course), alone) and alone.dtype == torch.float32
        course.weigh(torch.full((IMAGES, PATCHES), 0.5))
        assert all(logits.isfinite().all() for logits in course.logits())


def test_where_every_patch_is_kept_nothing_is_weighed(exact):
    pruner = LayerPruner(hidden=8).fresh(SPEC, seed=0)
    schedule = pruner.schedule(PATCHES, LAYERS, PATCHES)
    taught = pruner.teach(Layered(exact, patches(), packs()), looked_at(), practice(PATCHES), schedule)
    stock = answer_logits_together(exact, patches(), None, packs())
    assert all(map(torch.equal, taught.logits, stock))


def test_layer_0_meets_every_budget_and_later_layers_say_what_they_cannot_meet():
    for keep in range(1, PATCHES + 1):
        assert abs(LayerPruner().schedule(PATCHES, LAYERS, keep).mean - keep) <= 0.5
        assert LayerPruner().schedule(PATCHES, LAYERS, keep, "kept").kept(PATCHES) == keep
    with pytest.raises(Infeasible, match="from layer 8 of 32 on"):
        LayerPruner(layers=(8, 16)).schedule(576, 32, 64)
