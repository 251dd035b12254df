"""Run any pruner on a batch of questions: provide what it reads beside arrays, and make its merged tokens.

A method that ignores the question prunes each image of a batch once. A method that reads the question prunes an image
once for each question about it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from configs.experiment import Experiment
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.clip_text import ClipReader, check_clip, open_clip_text
from stage2_prune.language.language import Language
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.result import prune_images
from stage2_prune.pruning.tokens import ClipText, Merge, Pruned, VisualTokens
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.merging import make_merged
from store.questions.question import Question

ABOUT_QUESTIONS = frozenset({"question", "clip_text"})
"""The inputs of a pruner that differ between questions about one image."""


@dataclass(frozen=True)
class QuestionReader:
    """Reads the inputs of pruners that are not arrays: a question's embeddings in the language model and in CLIP."""

    experiment: Experiment
    features: Features
    language: Language

    @cached_property
    def clip(self) -> ClipReader:
        """CLIP's text encoder, opened when a method first reads it; raises what `check_clip` and `open_clip_text` raise."""
        check_clip(self.features.store, self.experiment.model)
        return open_clip_text(self.experiment.model, self.language.device)

    @property
    def clip_digest(self) -> str:
        """sha256 of the weights of CLIP's text encoder."""
        return self.clip.digest

    def question(self, question: Question) -> Float[Tensor, "1 token embed"]:
        """Embed the question as the language model does, with `data.post_prompt`, without template and special tokens."""
        ids = self.language.tokenizer(self._wording(question), add_special_tokens=False)["input_ids"]
        return self.language.embed(torch.tensor([ids], device=self.language.device))

    def clip_text(self, question: Question) -> ClipText:
        """Encode the question with CLIP's text encoder; the image axis of the result is 1."""
        return self.clip.read(self._wording(question))

    def _wording(self, question: Question) -> str:
        return question.question + self.experiment.data.post_prompt


def prune_batch(pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader) -> tuple[FeatureBatch, Pruned]:
    """Prune a batch and make its merged tokens.

    Returns:
        The batch that the result belongs to, and the visual tokens that the pruner leaves. If the pruner reads the
        question, that batch has an image of its own for each question.
    """
    batch, chosen = choose_batch(pruner, batch, keep, reader)
    return batch, make_merged(chosen, batch, reader.features.project)


def choose_batch(pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader) -> tuple[FeatureBatch, Pruned]:
    """Prune a batch as `prune_batch` does, but leave merges as the weights that the pruner returned.

    Raises:
        PrunerMisused: (exit 2) if the method returns no result for these images, or is not `adaptive` and keeps another
            number of tokens than `keep`.
    """
    batch = with_projector(pruner, batch, reader)
    if pruner.reads & ABOUT_QUESTIONS:
        batch = per_question(batch)
        chosen = _prune_questions(pruner, batch, keep, reader)
    else:
        chosen = prune_images(pruner, batch.tokens, keep)
    if chosen.kept != keep and not pruner.adaptive:
        raise PrunerMisused(
            f"expected {keep} visual tokens per image of {type(pruner).__name__}, it returned {chosen.kept}: keep the budget to "
            "the token, or let the method be `adaptive` and return its counts"
        )
    return batch, chosen


def with_projector(pruner: Pruner, batch: FeatureBatch, reader: QuestionReader) -> FeatureBatch:
    """Give a batch the store's projector, if the pruner reads it."""
    if "projector" not in pruner.reads:
        return batch
    return replace(batch, tokens=replace(batch.tokens, projector=reader.features.project))


def per_question(batch: FeatureBatch) -> FeatureBatch:
    """Repeat the images of a batch, so that each question has an image of its own."""
    of_question = batch.of_question
    own_image = torch.arange(len(of_question), device=of_question.device)
    return replace(
        batch,
        of_question=own_image,
        tokens=batch.tokens.at(of_question.tolist()),
        projected=batch.projected[of_question],
    )


def _prune_questions(pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader) -> Pruned:
    """Prune once for each question."""
    groups = by_length(pruner, batch, range(len(batch.questions)), reader)
    parts = [prune_images(pruner, tokens, keep) for _, tokens in groups]
    return joined(parts, order_of([numbers for numbers, _ in groups]))


def by_length(
    pruner: Pruner, batch: FeatureBatch, questions: Sequence[int], reader: QuestionReader
) -> list[tuple[list[int], VisualTokens]]:
    """Group questions of equal length, so that no method has to handle padding, and give their images what a method reads.

    Args:
        pruner: a method that reads the question or its CLIP text.
        batch: a batch in which each question has an image of its own.
        questions: the questions to group, as their places in the batch.
        reader: the reader of texts.

    Returns:
        For each length, places in `questions`, and the tokens of these questions' images.
    """
    texts = [_read(pruner, batch.questions[question], reader) for question in questions]
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        groups[_lengths(text)].append(number)
    return [
        (numbers, _with_texts(batch.tokens.at([questions[n] for n in numbers]), [texts[n] for n in numbers]))
        for numbers in groups.values()
    ]


def order_of(groups: Sequence[Sequence[int]]) -> list[int]:
    """Return for each number, from 0, its place among the numbers of all groups, laid one after another."""
    return torch.tensor([number for numbers in groups for number in numbers]).argsort().tolist()


QuestionText = tuple[Tensor | None, ClipText | None]
"""A question as the language model embeds it and as CLIP encodes it; None for what the pruner does not read."""


def _read(pruner: Pruner, question: Question, reader: QuestionReader) -> QuestionText:
    return (
        reader.question(question) if "question" in pruner.reads else None,
        reader.clip_text(question) if "clip_text" in pruner.reads else None,
    )


def _lengths(text: QuestionText) -> tuple[int, ...]:
    embedded, clip = text
    parts = [embedded] if clip is None else [embedded, clip.pooled, clip.tokens]
    return tuple(part.shape[1] for part in parts if part is not None)


def _with_texts(tokens: VisualTokens, texts: Sequence[QuestionText]) -> VisualTokens:
    embedded = [embeddings for embeddings, _ in texts if embeddings is not None]
    clips = [clip for _, clip in texts if clip is not None]
    clip_text = (
        replace(clips[0], pooled=torch.cat([c.pooled for c in clips]), tokens=torch.cat([c.tokens for c in clips]))
        if clips
        else None
    )
    return replace(tokens, question=torch.cat(embedded) if embedded else None, clip_text=clip_text)


def joined(parts: Sequence[Pruned], order: Sequence[int]) -> Pruned:
    """Join several results into one; parts that keep fewer tokens are padded with zeros.

    Args:
        parts: the results.
        order: for each image of the joined result, its index among the images of all parts, laid one after another.
    """
    most = max(part.kept for part in parts)

    def rows(tensors: Sequence[Tensor | None], axes: int) -> Tensor | None:
        """Pad the token axis, which `axes` other axes follow, and join."""
        given = [tensor for tensor in tensors if tensor is not None]
        padded = [F.pad(tensor, (0, 0) * axes + (0, most - tensor.shape[1])) for tensor in given]
        return torch.cat(padded)[list(order)] if padded else None

    merges = [part.merge for part in parts if part.merge is not None]
    weights = rows([merge.weights for merge in merges], 1)
    counts = [part.counts for part in parts if part.counts is not None]
    return Pruned(
        rows([part.index for part in parts], 0),
        None if weights is None else Merge(weights, merges[0].space),
        rows([part.tokens for part in parts], 1),
        torch.cat(counts)[list(order)] if counts else None,
    )
