"""What every training step is made of: a frozen model, tokenised questions, and the loss of their answers."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from configs.experiment import TrainSection
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.language import Language
from stage2_prune.training.packed import Lesson, PackedLessons, answer_logits, pack
from stage2_prune.training.ranks import Ranks
from store.checkpoint.text import TextSide
from store.questions.question import Question

T = TypeVar("T")
ALONE = Ranks()


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
    for image, group in groups_of(of_lesson, lessons):
        packed = pack([lessons[number] for number in group], language.device)
        total = total + answer_loss(answer_logits(language, visual[image], None, packed), packed, tokens)
    return total


def images_at_once(section: TrainSection, device: torch.device) -> int:
    """Return `train.images_at_once`, or what `auto` begins with: every image of a step on a GPU, one on a CPU."""
    if section.images_at_once != "auto":
        return section.images_at_once
    return section.batch_size if device.type == "cuda" else 1


def sum_of(losses: Iterable[Float[Tensor, ""]]) -> Float[Tensor, ""]:
    """Add losses; there is at least one."""
    return reduce(torch.add, losses)


def answer_loss(logits: Float[Tensor, "scored vocab"], packed: PackedLessons, tokens: int) -> Float[Tensor, ""]:
    """Sum the cross-entropies of packed answers, as a share of the mean over `tokens` answer tokens."""
    return F.cross_entropy(logits, packed.answer, reduction="sum") / tokens


def groups_of(of_lesson: Sequence[int], lessons: Sequence[Lesson]) -> Iterator[tuple[int, list[int]]]:
    """Group lessons that can share a forward pass: about one image, with the same text before the image.

    Yields:
        An image, and the numbers of its lessons.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, (image, lesson) in enumerate(zip(of_lesson, lessons, strict=True)):
        groups.setdefault((image, lesson.prompt.before), []).append(number)
    for (image, _), group in groups.items():
        yield image, group
