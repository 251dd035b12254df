"""Compute the loss of one batch of questions and its gradient, which reaches the pruner's module and nothing else."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stage2_prune.errors import PruneError
from stage2_prune.language.language import Language
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.features import FeatureBatch
from stage2_prune.training.packed import Lesson, PackedLessons, answer_logits, pack
from store.questions.question import Question


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
def seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    """Set torch's generators to `seed` within the block, so that a pruner's draws can be repeated; restore them after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def make_lesson(language: Language, question: Question, post_prompt: str) -> Lesson:
    """Tokenise a question with the first of its answers and the end token, so that generation learns to end there."""
    return lesson_of(language, question.question + post_prompt, question.answers[0])


def lesson_of(language: Language, asked: str, answer: str) -> Lesson:
    """Tokenise what is asked, the post prompt included, with its answer and the end token."""
    return Lesson(language.prompt(asked), (*language.answer_ids(asked, answer), language.eos_token_ids[0]))


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
) -> StepLoss:
    """Add the gradient of a batch's scaled loss to the pruner's module, with one forward pass per image.

    Call this function inside `frozen`.

    Args:
        language: the language model.
        pruner: the pruner that is trained.
        batch: the features of the batch.
        lessons: the tokenised questions of the batch, in its order.
        keep: the budget of this step, in visual tokens per image.
        kl_weight: the weight of the divergence from the unpruned model; 0 leaves the divergence out.
        scaler: the loss scaler.

    Raises:
        NonFiniteLoss: (exit 3) if the training has diverged.
    """
    tokens = sum(len(lesson.answer) for lesson in lessons)
    answer = torch.zeros((), device=language.device)
    divergence = torch.zeros((), device=language.device)
    seen = batch.tokens.only(pruner.needs)
    for image, group in _groups(batch.of_question.tolist(), lessons):
        weights = pruner.soft(seen.one(image), keep)[0]
        packed = pack(group, language.device)
        visual = batch.projected[image]
        logits = answer_logits(language, visual, weights, packed)
        loss = _answer_loss(logits, packed, tokens)
        answer += loss.detach()
        if kl_weight:
            distance = _divergence(language, visual, packed, logits) / tokens
            divergence += distance.detach()
            loss = loss + kl_weight * distance
        scaler.scale(loss).backward()
    _require_finite(answer, divergence, keep)
    return StepLoss(answer.item(), divergence.item() if kl_weight else None)


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
    visual: Float[Tensor, "patch embed"],
    packed: PackedLessons,
    logits: Float[Tensor, "scored vocab"],
) -> Float[Tensor, ""]:
    """Sum the KL divergences of the pruned model's answer distributions from the unpruned model's."""
    with torch.no_grad():
        unpruned = answer_logits(language, visual, None, packed).log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), unpruned, reduction="sum", log_target=True)
