"""Ask all questions about one image in one forward pass, differentiable in the weight of each patch.

    before | patches ... | question 1 + answer 1 | question 2 + answer 2 | ...

A question sees the prefix and itself, and its positions continue where the image ends. So a question is answered as if
it were asked alone, but the prefix is computed once. This is valid for pruners that do not look at the question.

A patch of weight w counts w times in every softmax, because log(w) is added to the patch's column of the attention mask.
This leads from a removed patch (w = 0) to an untouched patch (w = 1 adds exactly 0) without a jump at either end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stage2_prune.language.assemble import cast
from stage2_prune.language.language import Language
from store.checkpoint.text import Prompt


@dataclass(frozen=True)
class Lesson:
    """A tokenised question and the answer that the language model should give."""

    prompt: Prompt
    answer: tuple[int, ...]
    """Token ids, the end token included."""


@dataclass(frozen=True)
class PackedLessons:
    """Lessons about one image, laid one after another behind its patches."""

    before: Int[Tensor, " before"]
    """Token ids before the image, shared by all lessons."""
    ids: Int[Tensor, " token"]
    """Token ids behind the image: questions and answers, lesson after lesson."""
    segment: Int[Tensor, " token"]
    """The number of each token's lesson, from 1; the prefix counts as 0."""
    offset: Int[Tensor, " token"]
    """The position of each token, counted from the end of the image."""
    scored: Int[Tensor, " scored"]
    """Indices in `ids` at which an answer token is predicted: each is one before the answer token's own index."""
    answer: Int[Tensor, " scored"]
    """The right answer token at each scored index."""


def pack(lessons: Sequence[Lesson], device: torch.device) -> PackedLessons:
    """Lay lessons that share the text before the image one after another."""
    before = lessons[0].prompt.before
    assert all(lesson.prompt.before == before for lesson in lessons), (
        "lessons of one pack share the text before the image"
    )
    ids: list[int] = []
    segment: list[int] = []
    offset: list[int] = []
    scored: list[int] = []
    for number, lesson in enumerate(lessons, start=1):
        tokens = [*lesson.prompt.after, *lesson.answer[:-1]]  # the last answer token predicts nothing
        first_scored = len(ids) + len(lesson.prompt.after) - 1
        scored += range(first_scored, first_scored + len(lesson.answer))
        ids += tokens
        segment += [number] * len(tokens)
        offset += range(len(tokens))
    answer = [token for lesson in lessons for token in lesson.answer]
    parts = (before, ids, segment, offset, scored, answer)
    return PackedLessons(*(torch.tensor(part, dtype=torch.long, device=device) for part in parts))


def answer_logits(
    language: Language,
    visual: Float[Tensor, "patch embed"],
    weights: Float[Tensor, " patch"] | None,
    packed: PackedLessons,
) -> Float[Tensor, "scored vocab"]:
    """Compute float32 logits at each scored index of the lessons about one image; arguments as `answer_logits_together`."""
    (logits,) = answer_logits_together(language, visual[None], None if weights is None else weights[None], [packed])
    return logits


def answer_logits_together(
    language: Language,
    visual: Float[Tensor, "image patch embed"],
    weights: Float[Tensor, "image patch"] | None,
    packed: Sequence[PackedLessons],
) -> list[Float[Tensor, "_ vocab"]]:
    """Compute float32 logits at each scored index of the lessons about several images, in one forward pass.

    Args:
        language: the language model.
        visual: the projected features of each image.
        weights: the weight of each patch in [0, 1]; None gives the same bits as weights of 1.
        packed: the lessons about each image. Shorter sequences are padded behind: nothing looks at padding, it looks at itself.
    """
    patches, device = visual.shape[1], language.device
    sequences, places, biases = [], [], []
    for image, lessons in enumerate(packed):
        before = len(lessons.before)
        text = language.embed(torch.cat([lessons.before, lessons.ids]))
        sequences.append(torch.cat([text[:before], cast(visual[image], language.dtype), text[before:]]))
        order = torch.arange(before + patches, device=device)
        places.append(torch.cat([order, lessons.offset + before + patches]))
        biases.append(attention_bias(lessons, patches, None if weights is None else weights[image]))
    embeds = pad_sequence(sequences, batch_first=True)
    if weights is not None and weights.requires_grad:
        # CUDA's memory-efficient attention cannot send a gradient to its mask alone (pytorch/pytorch#148476).
        embeds.requires_grad_()
    scored = [lessons.scored + len(lessons.before) + patches for lessons in packed]
    wanted = torch.cat(scored).unique()
    logits = language.model(
        inputs_embeds=embeds,
        attention_mask=_padded(biases, embeds.shape[1]).to(language.dtype)[:, None],
        position_ids=pad_sequence(places, batch_first=True),
        use_cache=False,
        logits_to_keep=wanted,
    ).logits
    return [logits[image, torch.searchsorted(wanted, places)].float() for image, places in enumerate(scored)]


def _padded(biases: Sequence[Float[Tensor, "_ _"]], size: int) -> Float[Tensor, "image {size} {size}"]:
    """Extend matrices of attention biases to one size; a padded token sees itself alone, and is seen by no other."""
    alone = torch.full((size, size), -torch.inf, device=biases[0].device).fill_diagonal_(0)
    whole: list[Tensor] = []
    for bias in biases:
        missing = size - len(bias)
        columns = F.pad(bias, (0, missing), value=-torch.inf)
        whole.append(torch.cat([columns, alone[len(bias) :]]))
    return torch.stack(whole)


def attention_bias(
    packed: PackedLessons, patches: int, weights: Float[Tensor, " patch"] | None
) -> Float[Tensor, "token token"]:
    """Build the matrix that is added to attention scores: 0 or log(weight) where a token may look, -inf elsewhere.

    The diagonal stays 0: every token sees itself, whatever the token weighs for others. So no row is empty.
    """
    before = len(packed.before)
    if weights is None:
        weights = torch.ones(patches, device=packed.ids.device)
    segment = torch.cat([packed.segment.new_zeros(before + patches), packed.segment])
    size = len(segment)
    earlier = torch.ones(size, size, dtype=torch.bool, device=segment.device).tril(-1)
    visible = earlier & ((segment[None, :] == 0) | (segment[None, :] == segment[:, None]))
    text = weights.new_zeros(1)
    column = torch.cat([text.expand(before), log_weight(weights), text.expand(len(packed.ids))])
    itself = torch.eye(size, dtype=torch.bool, device=segment.device)
    rest = torch.where(itself, 0.0, -torch.inf)
    return torch.where(visible, column[None], rest)


def log_weight(weights: Float[Tensor, " patch"]) -> Float[Tensor, " patch"]:
    """Take the logarithm of each weight; a removed patch gives -inf with gradient 0, not log's 0 times infinity."""
    present = weights >= torch.finfo(weights.dtype).tiny
    return torch.where(present, torch.where(present, weights, 1).log(), -torch.inf)
