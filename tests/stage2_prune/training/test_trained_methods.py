"""Every trained method before the language model, found by listing the folder, learns: gradients reach all its parameters."""

from dataclasses import replace

import pytest
import torch

from configs import plugin
from stage2_prune import CachedModel, pruners
from stage2_prune.contract.rule import Case
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.scored import ScoredPruner, ThresholdPruner
from stage2_prune.training.gradients import Aim, Guidance, accumulate_gradients, joined_loss
from stage2_prune.training.step import frozen, make_lesson, seeded
from stage2_prune.training.teacher import CachedAttention
from store import read_features
from store.questions.question import read_questions
from tests.stage2_prune.tokens import narrow, visual_tokens

STEPS = 12
CLASSES = {
    name: found
    for name, found in plugin.find_all(pruners, Pruner).items()
    if issubclass(found, TrainedPruner) and found.place == "before_llm"
}
ADAPTIVE = {f"{name}-threshold": found for name, found in CLASSES.items() if issubclass(found, ThresholdPruner)}


METHODS = {name: narrow(found) for name, found in CLASSES.items()}
METHODS |= {name: narrow(found, count="threshold") for name, found in ADAPTIVE.items()}


@pytest.fixture
def model(tiny):
    return CachedModel.open(tiny())


class Attended(CachedAttention):
    """The unpruned model's attention, drawn instead of read."""

    def __init__(self, patches):
        object.__setattr__(self, "patches", patches)

    def of(self, image_id, lessons):
        generators = [torch.Generator().manual_seed(len(lesson.prompt.after)) for lesson in lessons]
        return torch.stack([torch.rand(2, self.patches, generator=one) for one in generators]).softmax(-1)


@pytest.fixture(params=METHODS)
def pruner(request, model):
    session = model.session
    return METHODS[request.param].fresh(session.features.spec(METHODS[request.param], session.language.width), seed=0)


@pytest.fixture
def step(model, tiny, pruner):
    """Take a training step at a budget and a progress: its losses, and gradients in the module."""
    session, questions = model.session, read_questions(tiny().data)[:4]
    (batch,) = session.features.reading(pruner.needs).batches([questions])
    lessons = [make_lesson(session.language, question, "") for question in questions]
    generator = torch.Generator().manual_seed(0)
    asked = {question.question_id: torch.rand(model.patches, generator=generator) for question in questions}
    guidance = Guidance(
        regions={name: seen > 0.7 for name, seen in list(asked.items())[:3]},  # one question is about no place
        attention=Attended(model.patches),
    )

    def take(keep, progress, seed=0):
        aim, scaler = Aim(keep, progress), torch.amp.GradScaler("cpu", enabled=False)
        pruner.module.zero_grad()
        with frozen(session.language.model), seeded(seed, session.language.device):
            losses = accumulate_gradients(session.reader, pruner, batch, lessons, aim, scaler, guidance)
            return joined_loss(losses, pruner, aim, batch)

    return take


def test_twelve_steps_reach_every_parameter_and_lose_what_the_method_names(pruner, step):
    optimiser = torch.optim.Adam(pruner.module.parameters(), lr=0.003)
    reached = {name: 0.0 for name, _ in pruner.module.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in pruner.module.named_parameters()}
    for number in range(STEPS):
        loss = step(keep=(2, 5, 9)[number % 3], progress=number / STEPS, seed=number)
        assert tuple(loss.others) == pruner.losses
        for name, parameter in pruner.module.named_parameters():
            reached[name] += 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        optimiser.step()
    most = max(reached.values())
    assert {name: size for name, size in reached.items() if size < 1e-6 * most} == {}
    for name, parameter in pruner.module.named_parameters():
        assert torch.isfinite(parameter).all() and not torch.equal(parameter, before[name]), name


def test_at_a_budget_of_all_patches_the_language_model_is_shown_what_it_always_sees(pruner, step, model, tiny):
    questions = read_questions(tiny().data)[:4]
    features = read_features(model.session.features.store, [question.image for question in questions])
    unpruned = model.loss(features, [one.question for one in questions], [one.answers[0] for one in questions]).item()
    for progress in (0.0, 0.9):
        assert step(model.patches, progress).answer == pytest.approx(unpruned, rel=1e-5)
    for parameter in pruner.module.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", [name for name, found in METHODS.items() if isinstance(found, ScoredPruner)])
def test_a_scoring_method_ranks_by_its_policy_and_the_policy_has_a_gradient(name):
    case = Case((4, 4))
    pruner, tokens = case.ready(METHODS[name]), case.tokens()
    scores = pruner.policy(tokens)
    falling = scores.gather(1, pruner.ranking(tokens, 16))
    assert scores.requires_grad and (falling.diff() <= 0).all() and scores.unique().numel() > 16


@pytest.mark.parametrize("name", [name for name, found in METHODS.items() if isinstance(found, ScoredPruner)])
def test_patches_that_are_all_alike_are_not_kept_by_their_place_in_the_image(name):
    tokens = visual_tokens((4, 4))
    alike = replace(tokens, arrays={key: torch.ones_like(array) for key, array in tokens.arrays.items()})
    pruner = Case((4, 4)).ready(METHODS[name])
    for parameter in pruner.module.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        kept = pruner.ranking(alike, 4).sort().values
    assert (kept != torch.arange(4)).any(1).all() and not torch.equal(kept[0], kept[1])


def test_a_method_that_selects_by_no_scores_has_no_policy():
    with pytest.raises(PrunerMisused, match="LearnedScorer has no policy"):
        CLASSES["learned_scorer"]().policy(visual_tokens())
