"""Compute the losses of one training step and their gradient, which reaches the pruner's module and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stage2_prune.errors import PruneError
from stage2_prune.language.language import Language
from stage2_prune.pruning.practice import Practice, Shown, joined
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import (
    ABOUT_QUESTIONS,
    QuestionReader,
    by_length,
    order_of,
    per_question,
    with_projector,
)
from stage2_prune.training.packed import Lesson, PackedLessons, answer_logits_together, pack
from stage2_prune.training.ranks import Ranks
from stage2_prune.training.step import answer_loss, groups_of, sum_of
from stage2_prune.training.teacher import CachedAttention, ImageLessons, Teacher

T = TypeVar("T")
ALONE = Ranks()


class NonFiniteLoss(PruneError):
    """Training has diverged: its loss is not finite."""

    exit_code = 3


@dataclass(frozen=True)
class Aim:
    """What a training step aims at."""

    keep: int
    """The budget, in visual tokens per image."""
    progress: float = 0.0
    """The share of the training's steps that are done."""
    kl_weight: float = 0.0
    """The weight of the divergence from the unpruned model; 0 leaves it out."""


@dataclass(frozen=True)
class Guidance:
    """What a training learns from beside the answers."""

    regions: Mapping[str, Bool[Tensor, " patch"]] = field(default_factory=dict[str, Tensor])
    """The patches that a question is about, by question id; questions without any are left out."""
    attention: CachedAttention | None = None
    """The unpruned model's attention, for methods that learn from it."""
    teacher: Teacher | None = None
    """The unpruned model's cached answers; None asks the unpruned model in every step that distils it."""


NOTHING_BESIDE = Guidance()


@dataclass(frozen=True)
class StepLoss:
    """The losses of a batch."""

    answer: float
    """Cross-entropy of the answers: the mean over answer tokens, in nats."""
    divergence: float | None
    """KL divergence from the unpruned model's distribution, likewise; None if `train.kl_weight` is 0."""
    others: Mapping[str, float] = field(default_factory=dict[str, float])
    """The losses that the method names: means over images."""


def accumulate_gradients(
    reader: QuestionReader,
    pruner: TrainedPruner,
    batch: FeatureBatch,
    lessons: Sequence[Lesson],
    aim: Aim,
    scaler: torch.amp.GradScaler,
    guidance: Guidance = NOTHING_BESIDE,
    at_once: int = 1,
    ranks: Ranks = ALONE,
) -> Float[Tensor, " loss"]:
    """Add the gradient of this rank's share of a batch's scaled loss to the pruner's module; call it in `frozen`.

    No rank waits for another one here. `joined_loss` adds up what the ranks have computed.

    Args:
        reader: the language model, and what else a pruner may read.
        pruner: the pruner that is trained.
        batch: the features of the batch.
        lessons: the tokenised questions of the batch, in its order.
        aim: the budget, and what is weighed how.
        scaler: the loss scaler.
        guidance: what is learnt from beside the answers.
        at_once: the number of images per forward pass of the language model.
        ranks: the processes that train together.

    Returns:
        This rank's share of the losses: of the answers, of the divergence, and of those that the method names.
    """
    batch, device = _with_images_of(pruner, batch, reader), reader.language.device
    groups = list(groups_of(batch.of_question.tolist(), lessons))
    tokens = sum(len(lesson.answer) for lesson in lessons)
    weights = torch.tensor([1.0, aim.kl_weight, *[1.0 for _ in pruner.losses]], device=device)
    total = torch.zeros_like(weights)
    for part in _forwards(ranks.share(groups), at_once):
        practice = _practice(pruner, batch, part, lessons, aim, guidance)
        shown = show(pruner, batch, [image for image, _ in part], practice, reader)
        asked = _asked(batch, part, lessons)
        losses = [*_answer_losses(reader.language, practice, shown, asked, tokens, aim, guidance)]
        losses += [shown.losses[name].sum() / len(groups) for name in pruner.losses]
        joint = torch.stack(losses)
        total += joint.detach()
        scaler.scale((joint * weights).sum()).backward()
    return total


def _with_images_of(pruner: TrainedPruner, batch: FeatureBatch, reader: QuestionReader) -> FeatureBatch:
    """Give a batch the projector if the pruner reads it, and each question an image of its own if it reads questions."""
    batch = with_projector(pruner, batch, reader)
    return per_question(batch) if pruner.reads & ABOUT_QUESTIONS else batch


def joined_loss(
    losses: Float[Tensor, " loss"], pruner: TrainedPruner, aim: Aim, batch: FeatureBatch, ranks: Ranks = ALONE
) -> StepLoss:
    """Add up the losses and gradients of all ranks, in place; raise NonFiniteLoss (exit 3) if the training has diverged."""
    ranks.add([losses])
    ranks.add_gradients(pruner.module.parameters())
    if not torch.isfinite(losses).all():
        names = ("the answers", "the divergence", *pruner.losses)
        wrong = ", ".join(f"{loss:g} of {name}" for name, loss in zip(names, losses.tolist(), strict=True))
        raise NonFiniteLoss(
            f"expected a finite training loss, got {wrong} at {aim.keep} tokens per image, in the batch that begins with "
            f"question {batch.questions[0].question_id}: lower train.learning_rate, or set model.dtype to bfloat16 or float32"
        )
    answer, divergence, *others = losses.tolist()
    return StepLoss(answer, divergence if aim.kl_weight else None, dict(zip(pruner.losses, others, strict=True)))


def show(
    pruner: TrainedPruner, batch: FeatureBatch, images: Sequence[int], practice: Practice, reader: QuestionReader
) -> Shown:
    """Let a pruner decide what the language model is shown of some images of a batch, of which `practice` is about."""
    if not pruner.reads & ABOUT_QUESTIONS:
        return pruner.practise(batch.tokens.only(pruner.needs, pruner.reads).at(images), practice)
    groups = by_length(pruner, batch, images, reader)
    parts = [
        pruner.practise(tokens.only(pruner.needs, pruner.reads), practice.at(numbers)) for numbers, tokens in groups
    ]
    return joined(parts, order_of([numbers for numbers, _ in groups]))


def _practice(
    pruner: TrainedPruner,
    batch: FeatureBatch,
    part: Sequence[tuple[int, Sequence[int]]],
    lessons: Sequence[Lesson],
    aim: Aim,
    guidance: Guidance,
) -> Practice:
    """Gather what the pruner learns from, for the images of a forward pass and their questions."""
    regions = attention = None
    if "regions" in pruner.learns_from:
        nowhere = torch.zeros(batch.tokens.patches, dtype=torch.bool)
        known = {q.question_id: guidance.regions.get(q.question_id, nowhere) for q in batch.questions}
        each = [torch.stack([known[batch.questions[number].question_id] for number in numbers]) for _, numbers in part]
        regions = torch.stack([marked.any(0) for marked in each]).to(batch.projected.device)
    if "attention" in pruner.learns_from:
        assert guidance.attention is not None, "a training opens what its method learns from"
        attended = [guidance.attention.of(*about) for about in _asked(batch, part, lessons)]
        attention = torch.stack([each.mean((0, 1)) for each in attended])
    images = [image for image, _ in part]
    return Practice(aim.keep, aim.progress, batch.projected[images], regions, attention)


def _asked(
    batch: FeatureBatch, part: Sequence[tuple[int, Sequence[int]]], lessons: Sequence[Lesson]
) -> list[ImageLessons]:
    """Return the sha256 and the lessons of each image of a forward pass."""
    return [(batch.tokens.image_ids[image], [lessons[number] for number in numbers]) for image, numbers in part]


def _answer_losses(
    language: Language,
    practice: Practice,
    shown: Shown,
    asked: Sequence[ImageLessons],
    tokens: int,
    aim: Aim,
    guidance: Guidance,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute the cross-entropy of the answers and, if it is weighed, the divergence from the unpruned model.

    Both are sums, as a share of the mean over `tokens` answer tokens.
    """
    packed = [pack(lessons, language.device) for _, lessons in asked]
    visual = practice.projected if shown.visual is None else shown.visual
    logits = answer_logits_together(language, visual, shown.weights, packed)
    loss = sum_of(answer_loss(*pair, tokens) for pair in zip(logits, packed, strict=True))
    if not aim.kl_weight:
        return loss, torch.zeros_like(loss)
    if guidance.teacher is not None:
        return loss, guidance.teacher.divergence(asked, logits) / tokens
    return loss, _divergence(language, practice.projected, packed, logits) / tokens


def _divergence(
    language: Language,
    visual: Float[Tensor, "image patch embed"],
    packed: Sequence[PackedLessons],
    logits: Sequence[Float[Tensor, "_ vocab"]],
) -> Float[Tensor, ""]:
    """Sum the KL divergences of the pruned model's answer distributions from the unpruned model's."""
    with torch.no_grad():
        unpruned = [rows.log_softmax(-1) for rows in answer_logits_together(language, visual, None, packed)]
    return sum_of(
        F.kl_div(ours.log_softmax(-1), theirs, reduction="sum", log_target=True)
        for ours, theirs in zip(logits, unpruned, strict=True)
    )


def _forwards(groups: Sequence[T], at_once: int) -> list[Sequence[T]]:
    """Divide the images of a step into as few forward passes as `at_once` allows, of like size."""
    count = -(-len(groups) // at_once)
    return [groups[number::count] for number in range(count)]
