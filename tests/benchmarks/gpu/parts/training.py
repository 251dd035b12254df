"""One optimiser step of `learned_scorer`: seconds, and the share that it reaches of what FLOPs allow."""

import torch

from stage2_prune.cached_model import load_pruner
from stage2_prune.language.prefill import prefill_latency
from stage2_prune.language.price import CONVENTIONS, shape_of
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.session import Session
from stage2_prune.training.gradients import NOTHING_BESIDE, Aim, accumulate_gradients
from stage2_prune.training.packed import Lesson
from stage2_prune.training.ranks import Ranks
from stage2_prune.training.step import frozen, images_at_once, make_lesson
from stage2_prune.training.trainer import Trainer
from store.questions.question import Question
from tests.benchmarks.gpu import before
from tests.benchmarks.gpu.making import TRAINED_QUESTIONS
from tests.benchmarks.gpu.parts.evaluation import questions_of
from tests.benchmarks.gpu.parts.prefill import predict
from tests.benchmarks.gpu.place import Place
from tests.benchmarks.gpu.rows import Rows
from tests.benchmarks.gpu.scale import TEXT_TOKENS

IMAGES = 5
PREFILLED = 8
"""Questions at once of the prefill whose rate is the yardstick."""


def measure(place: Place, rows: Rows) -> None:
    """Measure whole steps and their forward passes alone."""
    session = place.session()
    asked = questions_of(session.experiment, "train")[: IMAGES * TRAINED_QUESTIONS]
    trainer = _trainer(session, asked)
    (batch,) = session.features.batches([asked])
    lessons = [make_lesson(session.language, question, "") for question in asked]
    trainer.pruner.module.train()
    with frozen(session.language.model):
        step = place.clock.median(lambda: trainer._step(batch, 1, 0, 10), place.scale.rounds)
        rows.add("training", before.STEP, step, "s")
        forward = place.clock.median(
            lambda: _forward(place, session, trainer.pruner, batch, lessons), place.scale.rounds
        )
    rows.add("training", before.FORWARD, forward, "s")
    rows.add("training", before.BACKWARD, step - forward, "s")
    flops = _flops(session, lessons, place.scale.patches)
    bound = flops / _rate_of_prefill(place, session)
    rows.add("training", f"FLOPs bound of it, at the rate of a prefill of {PREFILLED}", bound, "s")
    rows.add("training", before.SHARE, bound / step)
    rows.add(
        "training",
        "the same share, at the measured peak of matrix products",
        flops / place.peaks.flops_per_second / step,
    )


def _trainer(session: Session, asked: list[Question]) -> Trainer:
    pruner = load_pruner("learned_scorer")
    assert isinstance(pruner, TrainedPruner)
    return Trainer(session, "bench", pruner, asked, asked[:1], {}, NOTHING_BESIDE, Ranks())


class _ForwardOnly(torch.amp.GradScaler):
    """A scaler that lets go of the loss, so that nothing is computed backwards."""

    def scale(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the loss without what it was made of."""
        return outputs.detach().requires_grad_()


def _forward(place: Place, session: Session, pruner: TrainedPruner, batch: FeatureBatch, lessons: list[Lesson]) -> None:
    scaler = _ForwardOnly(place.device.type, enabled=False)
    at_once, aim = images_at_once(session.experiment.train, place.device), Aim(place.scale.few)
    accumulate_gradients(session.reader, pruner, batch, lessons, aim, scaler, at_once=at_once)


def _rate_of_prefill(place: Place, session: Session) -> float:
    """Return the operations per second of a prefill that is not bound by launches: the language model's own best."""
    model, patches = session.language.model, place.scale.patches
    seconds = prefill_latency(model, PREFILLED, patches + TEXT_TOKENS, graphs=False, runs=place.scale.rounds)
    return predict(place, model, PREFILLED, patches).compute * place.peaks.flops_per_second / seconds


def _flops(session: Session, lessons: list[Lesson], patches: int) -> float:
    """Count forward and backward of one step: each image's patches and text once, backwards through activations alone."""
    shape, head = shape_of(session.language), session.language.model.lm_head.weight.numel()
    total = 0
    for start in range(0, len(lessons), TRAINED_QUESTIONS):
        group = lessons[start : start + TRAINED_QUESTIONS]
        text = len(group[0].prompt.before) + sum(len(one.prompt.after) + len(one.answer) - 1 for one in group)
        total += CONVENTIONS["flops_all"].count(shape, [patches] * shape.layers, text)
        total += 2 * head * sum(len(one.answer) for one in group)
    return 2.0 * total
