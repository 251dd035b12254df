"""The loss that a module of one's own is trained with: what a training computes, with a gradient to the visual tokens alone."""

import jaxtyping
import pytest
import torch

from configs.errors import WrongCall
from stage2_prune import CachedModel, load_pruner
from stage2_prune.training.gradients import Aim, accumulate_gradients, joined_loss
from stage2_prune.training.step import frozen, make_lesson
from store import read_features
from store.questions.question import read_questions


@pytest.fixture
def model(tiny):
    return CachedModel.open(tiny())


@pytest.fixture
def questions(tiny):
    return read_questions(tiny().data)[:4]  # two about each of two images


def parts(model, questions):
    features = read_features(model.session.features.store, [question.image for question in questions])
    return features, [question.question for question in questions], [question.answers[0] for question in questions]


def test_the_loss_of_all_visual_tokens_is_what_a_training_computes_at_this_budget(model, questions):
    session = model.session
    pruner = load_pruner("learned_scorer", hidden=8)
    pruner = pruner.fresh(session.features.spec(pruner, session.language.width), seed=0)
    (batch,) = session.features.reading(pruner.needs).batches([questions])
    lessons = [make_lesson(session.language, question, session.experiment.data.post_prompt) for question in questions]
    scaler, aim = torch.amp.GradScaler("cpu", enabled=False), Aim(model.patches)
    with frozen(session.language.model):
        losses = accumulate_gradients(session.reader, pruner, batch, lessons, aim, scaler)
        step = joined_loss(losses, pruner, aim, batch)
    features, asked, answers = parts(model, questions)
    assert model.loss(features, asked, answers).item() == pytest.approx(step.answer, rel=1e-5)


def test_questions_about_one_image_share_it(model, questions):
    features, asked, answers = parts(model, questions[:2])
    together = model.loss(features[0], asked, answers)
    torch.testing.assert_close(together, model.loss(features, asked, answers))
    torch.testing.assert_close(
        model.loss(features[0], asked[0], answers[0]), model.loss(features[:1], asked[:1], answers[:1])
    )


def test_the_gradient_reaches_a_module_and_nothing_else_and_the_loss_falls(model, questions):
    features, asked, answers = parts(model, questions)
    torch.manual_seed(0)
    pool = torch.nn.Linear(model.patches, 4)
    optimiser = torch.optim.Adam(pool.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = model.loss(pool(features.mT).mT, asked, answers)
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in pool.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(one.requires_grad and one.grad is None for one in model.session.language.model.parameters())


def test_what_does_not_fit_together_is_refused(model, questions, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users have no checks of shapes
    features, asked, answers = parts(model, questions)
    with pytest.raises(WrongCall, match="got 4 images, 3 questions and 3 answers"):
        model.loss(features, asked[:3], answers[:3])
    with pytest.raises(WrongCall, match="got one image, 4 questions and 1 answer:"):
        model.loss(features[0], asked, answers[0])
    with pytest.raises(WrongCall, match="got an empty one"):
        model.loss(features[:1], asked[0], " ")
    with pytest.raises(WrongCall, match=r"\(token, 48\) or \(image, token, 48\), got \(4, 16, 47\)"):
        model.loss(features[..., 1:], asked, answers)
