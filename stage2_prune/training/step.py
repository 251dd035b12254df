"""Compute the loss of one batch of questions and its gradient, which reaches the pruner's module and nothing else."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from configs.experiment import TrainSection
from stage2_prune.errors import PruneError, PrunerMisused
from stage2_prune.language.language import Language
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.training.packed import Lesson, PackedLessons, answer_logits, answer_logits_together, pack
from stage2_prune.training.ranks import Ranks
from stage2_prune.training.teacher import Teacher
from store.checkpoint.text import TextSide
from store.questions.question import Question

T = TypeVar("T")
ALONE = Ranks()


class NonFiniteLoss(PruneError):
    """Training has diverged: its loss is not finite."""

    exit_code = 3


@dataclass(frozen=True)
class StepLoss:
    """The losses of a batch: means over its answer tokens, in nats."""

    answer: float
    """Cross-entropy of the answers."""
    divergence: float | None
    """KL divergence from the unpruned model's distribution; None if `train.kl_weight` is 0."""


@contextmanager
def frozen(model: nn.Module) -> Generator[None, None, None]:
    """Switch off gradients of the model's weights within the block.

    The flags are restored afterwards: torch picks a matrix product's kernel by them, and validation has to answer as an
    evaluation does.
    """
    before = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def checkpointing(model: nn.Module, wanted: bool) -> Generator[None, None, None]:
    """Let a stock model compute its layers again in the backward pass within the block, if that is `wanted`.

    Stock layers do so only in training mode. The flag is set on the layers alone: their parts stay in eval mode, without dropout.
    Raises PrunerMisused (exit 2) for a model whose layers cannot.
    """
    layers: list[Any] = [m for m in model.modules() if wanted and isinstance(m, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise PrunerMisused(
            f"expected a language model whose layers can be computed again, {type(model).__name__} has none: leave "
            "train.gradient_checkpointing out"
        )
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = False
            del layer._gradient_checkpointing_func


@contextmanager
def seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Set torch's generators to `seed` within the block, so that a pruner's draws can be repeated; restore them after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def make_lesson(text: TextSide, question: Question, post_prompt: str) -> Lesson:
    """Tokenise a question with the first of its answers and the end token, so that generation learns to end there."""
    return lesson_of(text, question.question + post_prompt, question.answers[0])


def lesson_of(text: TextSide, asked: str, answer: str) -> Lesson:
    """Tokenise what is asked, the post prompt included, with its answer and the end token."""
    return Lesson(text.prompt(asked), (*text.answer_ids(asked, answer), text.eos_token_ids[0]))


def mean_loss(
    language: Language,
    visual: Float[Tensor, "image token embed"],
    of_lesson: Sequence[int],
    lessons: Sequence[Lesson],
) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy of answer tokens, differentiable in the visual tokens, with one forward pass per image.

    Call this function inside `frozen`.

    Args:
        language: the language model.
        visual: the visual tokens of each image.
        of_lesson: for each lesson, the index of its image.
        lessons: the tokenised questions.
    """
    tokens = sum(len(lesson.answer) for lesson in lessons)
    total = torch.zeros((), device=language.device)
    for image, group in _groups(of_lesson, lessons):
        packed = pack(group, language.device)
        total = total + _answer_loss(answer_logits(language, visual[image], None, packed), packed, tokens)
    return total


def accumulate_gradients(
    language: Language,
    pruner: TrainedPruner,
    batch: FeatureBatch,
    lessons: Sequence[Lesson],
    keep: int,
    kl_weight: float,
    scaler: torch.amp.GradScaler,
    at_once: int = 1,
    ranks: Ranks = ALONE,
    teacher: Teacher | None = None,
) -> Float[Tensor, " 2"]:
    """Add the gradient of this rank's share of a batch's scaled loss to the pruner's module; call it in `frozen`.

    No rank waits for another one here. `joined_loss` adds up what the ranks have computed.

    Args:
        language: the language model.
        pruner: the pruner that is trained.
        batch: the features of the batch.
        lessons: the tokenised questions of the batch, in its order.
        keep: the budget of this step, in visual tokens per image.
        kl_weight: the weight of the divergence from the unpruned model; 0 leaves it out.
        scaler: the loss scaler.
        at_once: the number of images per forward pass of the language model.
        ranks: the processes that train together.
        teacher: the unpruned model's cached answers; None asks the unpruned model.

    Returns:
        This rank's share of the losses: of the answers, and of the divergence.
    """
    tokens = sum(len(lesson.answer) for lesson in lessons)
    losses = torch.zeros(2, device=language.device)
    seen = batch.tokens.only(pruner.needs)
    for part in _forwards(ranks.share(list(_groups(batch.of_question.tolist(), lessons))), at_once):
        images, packed = [image for image, _ in part], [pack(group, language.device) for _, group in part]
        weights, visual = pruner.soft(seen.at(images), keep), batch.projected[images]
        logits = answer_logits_together(language, visual, weights, packed)
        loss = sum_of(_answer_loss(*pair, tokens) for pair in zip(logits, packed, strict=True))
        distance = torch.zeros_like(loss)
        if kl_weight:
            distance = _divergence(language, visual, packed, logits, teacher, batch, part) / tokens
        losses += torch.stack([loss.detach(), distance.detach()])
        scaler.scale(loss + kl_weight * distance if kl_weight else loss).backward()
    return losses


def joined_loss(
    losses: Float[Tensor, " 2"], pruner: TrainedPruner, keep: int, kl_weight: float, ranks: Ranks = ALONE
) -> StepLoss:
    """Add up the losses and gradients of all ranks, in place; raise NonFiniteLoss (exit 3) if the training has diverged."""
    ranks.add([losses])
    ranks.add_gradients(pruner.module.parameters())
    _require_finite(losses[0], losses[1], keep)
    return StepLoss(losses[0].item(), losses[1].item() if kl_weight else None)


def images_at_once(section: TrainSection, device: torch.device) -> int:
    """Return `train.images_at_once`, or what `auto` begins with: every image of a step on a GPU, one on a CPU."""
    if section.images_at_once != "auto":
        return section.images_at_once
    return section.batch_size if device.type == "cuda" else 1


def _forwards(groups: Sequence[T], at_once: int) -> list[Sequence[T]]:
    """Divide the images of a step into as few forward passes as `at_once` allows, of like size."""
    count = -(-len(groups) // at_once)
    return [groups[number::count] for number in range(count)]


def sum_of(losses: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Add losses; there is at least one."""
    return reduce(torch.add, losses)


def _require_finite(answer: Tensor, divergence: Tensor, keep: int) -> None:
    """Raise NonFiniteLoss (exit 3) unless both losses of a step are finite."""
    if not torch.isfinite(answer + divergence):
        raise NonFiniteLoss(
            f"expected a finite training loss, got {answer.item()} at {keep} tokens per image: "
            "lower train.learning_rate, or set model.dtype to bfloat16 or float32"
        )


def _answer_loss(logits: Float[Tensor, "scored vocab"], packed: PackedLessons, tokens: int) -> Float[Tensor, ""]:
    """Sum the cross-entropies of packed answers, as a share of the mean over `tokens` answer tokens."""
    return F.cross_entropy(logits, packed.answer, reduction="sum") / tokens


def _groups(of_lesson: Sequence[int], lessons: Sequence[Lesson]) -> Iterator[tuple[int, list[Lesson]]]:
    """Group lessons that can share a forward pass: about one image, with the same text before the image."""
    groups: dict[tuple[int, tuple[int, ...]], list[Lesson]] = {}
    for image, lesson in zip(of_lesson, lessons, strict=True):
        groups.setdefault((image, lesson.prompt.before), []).append(lesson)
    for (image, _), group in groups.items():
        yield image, group


def _divergence(
    language: Language,
    visual: Float[Tensor, "image patch embed"],
    packed: Sequence[PackedLessons],
    logits: Sequence[Float[Tensor, "_ vocab"]],
    teacher: Teacher | None,
    batch: FeatureBatch,
    part: Sequence[tuple[int, list[Lesson]]],
) -> Float[Tensor, ""]:
    """Sum the KL divergences of the pruned model's answer distributions from the unpruned model's, or from the cached ones."""
    if teacher is not None:
        return teacher.divergence([(batch.tokens.image_ids[image], group) for image, group in part], logits)
    with torch.no_grad():
        unpruned = [rows.log_softmax(-1) for rows in answer_logits_together(language, visual, None, packed)]
    return sum_of(
        F.kl_div(ours.log_softmax(-1), theirs, reduction="sum", log_target=True)
        for ours, theirs in zip(logits, unpruned, strict=True)
    )
