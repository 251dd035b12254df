"""Compute the rows of a teacher: answer distributions, and the attention of each prompt's last token over visual tokens."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stage2_prune.errors import NonFiniteTeacher
from stage2_prune.language.language import Language
from stage2_prune.pruning.in_llm import Site
from stage2_prune.teaching.parts import Asked
from stage2_prune.training.distil import shortened
from stage2_prune.training.packed import Lesson, PackedLessons, answer_logits, pack
from stage2_prune.training.teacher import ATTENTION, IDS, LOG_PROBABILITIES, LOG_REST, SPAN
from store.layout.tensors import to_storage


@dataclass(frozen=True)
class Placed:
    """A question, and the first of its rows."""

    asked: Asked
    first: int


Rows = Mapping[str, NDArray[Any]]
"""The rows of one question, by array."""
Compute = Callable[[Language, Float[Tensor, "patch embed"], Sequence[Placed]], list[Rows]]
"""Computes the rows of questions about one image, which share the text before it."""


def answers(top: int) -> Compute:
    """Return the computation of answer distributions in short form."""

    def compute(language: Language, visual: Float[Tensor, "patch embed"], placed: Sequence[Placed]) -> list[Rows]:
        logits = answer_logits(language, visual, None, pack(_lessons(placed), language.device))
        counts = [len(question.asked.lesson.answer) for question in placed]
        rows: list[Rows] = []
        for question, count, own in zip(placed, counts, logits.split(counts), strict=True):
            _require_finite(question.asked, own)
            short = shortened(own, top)
            rows.append({
                IDS: to_storage(short.ids.int()),
                LOG_PROBABILITIES: to_storage(short.log_probabilities),
                LOG_REST: to_storage(short.log_rest[:, None]),
                SPAN: np.tile(np.array([question.first, count], "<i4"), (count, 1)),
            })  # fmt: skip
        return rows

    return compute


def attention(layers: Sequence[int]) -> Compute:
    """Return the computation of the attention of each prompt's last token over visual tokens, mean over heads, by layer."""

    def compute(language: Language, visual: Float[Tensor, "patch embed"], placed: Sequence[Placed]) -> list[Rows]:
        lessons = _lessons(placed)
        packed = pack(lessons, language.device)
        with entering(language.model.model, layers) as entered:
            answer_logits(language, visual, None, packed)
        rows: list[Rows] = []
        for number, (question, lesson) in enumerate(zip(placed, lessons, strict=True), start=1):
            tokens = _own_tokens(packed, number, lesson, len(visual))
            seen = [last_attention(language, layer, *entered[layer], tokens, packed, len(visual)) for layer in layers]
            _require_finite(question.asked, torch.stack(seen))
            rows.append({ATTENTION: to_storage(torch.stack(seen)[None])})
        return rows

    return compute


Entered = tuple[Float[Tensor, "token embed"], Float[Tensor, "token width"], Float[Tensor, "token width"]]
"""The hidden states that enter a layer, and the cosines and sines of their positions."""


@contextmanager
def entering(decoder: Any, layers: Sequence[int]) -> Generator[dict[int, Entered], None, None]:
    """Note what enters some layers of a stock decoder in a forward pass of one sequence within the block."""
    entered: dict[int, Entered] = {}

    def note(layer: int) -> Callable[..., None]:
        def before(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named["hidden_states"]
            cos, sin = named["position_embeddings"]
            entered[layer] = hidden[0], cos[0], sin[0]

        return before

    handles = [decoder.layers[n].register_forward_pre_hook(note(n), with_kwargs=True) for n in {*layers}]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def last_attention(
    language: Language,
    layer: int,
    hidden: Float[Tensor, "all embed"],
    cos: Float[Tensor, "all width"],
    sin: Float[Tensor, "all width"],
    tokens: Sequence[int],
    packed: PackedLessons,
    patches: int,
) -> Float[Tensor, " patch"]:
    """Compute the attention of one prompt's last token over the visual tokens in a layer, in float32, mean over heads."""
    own, start = hidden[tokens], len(packed.before)
    site = Site.entering(layer, start, patches, own, own, (cos[tokens], sin[tokens]), language.model.model)
    return site.attention(site.last, ahead=True)[:, 0, site.image].mean(0)


def _own_tokens(packed: PackedLessons, number: int, lesson: Lesson, patches: int) -> list[int]:
    """List the tokens of a packed sequence that a lesson's prompt would consist of if it were asked alone."""
    prefix = len(packed.before) + patches
    first = prefix + int((packed.segment == number).int().argmax())
    return [*range(prefix), *range(first, first + len(lesson.prompt.after))]


def _lessons(placed: Sequence[Placed]) -> list[Lesson]:
    return [question.asked.lesson for question in placed]


def _require_finite(asked: Asked, values: Tensor) -> None:
    """Raise NonFiniteTeacher (exit 3), naming the question, unless what the model gives for it are finite numbers."""
    if not torch.isfinite(values).all():
        question = asked.question
        raise NonFiniteTeacher(
            f"expected finite numbers from the unpruned model, question {question.question_id} about {question.image} gives "
            "NaN or infinity: set model.dtype to bfloat16 or float32, or look at the image's features"
        )
