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
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from stage2_prune.language.assemble import cast
from stage2_prune.language.language import Language
from store.checkpoint.text import Prompt

ALIGNED = 8
"""On a GPU sequences are padded to a multiple of this: otherwise each layer's attention would pad its mask anew."""
PADDING = -1
"""The segment of padded tokens, which is no lesson's."""


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
        packed: the lessons about each image; shorter sequences are padded behind, where no other token looks.
    """
    laid = lay_out(language, visual, packed)
    if weights is not None and weights.requires_grad:
        # CUDA's memory-efficient attention cannot send a gradient to its mask alone (pytorch/pytorch#148476).
        laid.embeds.requires_grad_()
    logits = language.model(
        inputs_embeds=laid.embeds,
        attention_mask=laid.mask(weights, language.dtype),
        position_ids=laid.positions,
        use_cache=False,
        logits_to_keep=laid.wanted,
    ).logits
    return laid.of_images(logits)


@dataclass(frozen=True)
class LaidOut:
    """The lessons about several images, laid out for one forward pass."""

    packed: Sequence[PackedLessons]
    patches: int
    embeds: Float[Tensor, "image token embed"]
    positions: Int[Tensor, "image token"]
    scored: Sequence[Int[Tensor, " _"]]
    """For each image, where its answer tokens are predicted."""
    wanted: Int[Tensor, " wanted"]
    """All these places: each image's own are among them."""

    def mask(
        self, weights: Float[Tensor, "image patch"] | None, dtype: torch.dtype
    ) -> Float[Tensor, "image 1 token token"]:
        """Return what is added to attention scores where patches weigh `weights`."""
        return attention_bias(self.packed, self.patches, weights, self.embeds.shape[1]).to(dtype)[:, None]

    def of_images(self, logits: Float[Tensor, "image wanted vocab"]) -> list[Float[Tensor, "_ vocab"]]:
        """Return each image's own float32 logits."""
        return [
            rows[torch.searchsorted(self.wanted, own)].float() for rows, own in zip(logits, self.scored, strict=True)
        ]


def lay_out(
    language: Language, visual: Float[Tensor, "image patch embed"], packed: Sequence[PackedLessons]
) -> LaidOut:  # fmt: skip
    """Embed the lessons about several images, each behind its image, and pad them to one length."""
    patches = visual.shape[1]
    starts = [len(lessons.before) + patches for lessons in packed]
    longest = max(start + len(lessons.ids) for start, lessons in zip(starts, packed, strict=True))
    size = padded_size(longest, language.device)
    embeds = _stacked([_embedded(language, *pair) for pair in zip(visual, packed, strict=True)], size)
    pairs = list(zip(starts, packed, strict=True))
    order = torch.arange(size, device=language.device)
    positions = _stacked([torch.cat([order[:start], lessons.offset + start]) for start, lessons in pairs], size)
    scored = [lessons.scored + start for start, lessons in pairs]
    return LaidOut(packed, patches, embeds, positions, scored, torch.cat(scored).unique())


def padded_size(longest: int, device: torch.device) -> int:
    """Return the length that sequences are padded to: that of the longest, on a GPU rounded up to a multiple of ALIGNED."""
    return -(-longest // ALIGNED) * ALIGNED if device.type == "cuda" else longest


def attention_bias(
    packed: Sequence[PackedLessons], patches: int, weights: Float[Tensor, "image patch"] | None, size: int
) -> Float[Tensor, "image {size} {size}"]:
    """Build the matrices that are added to attention scores: 0 or log(weight) where a token may look, -inf elsewhere.

    The diagonal stays 0: every token sees itself, whatever the token weighs for others. So no row is empty.
    """
    device = packed[0].ids.device
    befores = [len(lessons.before) for lessons in packed]
    if weights is None:
        column = torch.zeros(len(packed), size, device=device)
    else:
        columns = zip(log_weight(weights), befores, strict=True)
        column = torch.stack([F.pad(row, (before, size - before - patches)) for row, before in columns])
    behind = zip(packed, befores, strict=True)
    segment = _stacked([F.pad(lessons.segment, (before + patches, 0)) for lessons, before in behind], size, PADDING)
    earlier = torch.ones(size, size, dtype=torch.bool, device=device).tril(-1)
    visible = earlier & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    itself = torch.eye(size, dtype=torch.bool, device=device)
    rest = torch.where(itself, 0.0, -torch.inf)
    return torch.where(visible, column[:, None, :], rest)


def _embedded(
    language: Language, visual: Float[Tensor, "patch embed"], lessons: PackedLessons
) -> Float[Tensor, "token embed"]:
    """Embed the lessons about one image, with the image's features in their place."""
    before = len(lessons.before)
    text = language.embed(torch.cat([lessons.before, lessons.ids]))
    return torch.cat([text[:before], cast(visual, language.dtype), text[before:]])


def _stacked(
    rows: Sequence[Shaped[Tensor, "_ *rest"]], size: int, padding: int = 0
) -> Shaped[Tensor, "row {size} *rest"]:
    """Stack tensors after extending each to `size` entries."""
    entry = [0, 0] * (rows[0].dim() - 1)
    return torch.stack([F.pad(row, [*entry, 0, size - len(row)], value=padding) for row in rows])


def log_weight(weights: Float[Tensor, "*image patch"]) -> Float[Tensor, "*image patch"]:
    """Take the logarithm of each weight; a removed patch gives -inf with gradient 0, not log's 0 times infinity."""
    present = weights >= torch.finfo(weights.dtype).tiny
    return torch.where(present, torch.where(present, weights, 1).log(), -torch.inf)
