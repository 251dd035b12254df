"""Any pruner on a batch of questions: what it reads beside arrays is put there, and its merges are made.

A method that does not look at the question prunes each image of a batch once; one that does prunes it for each question.
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
from stage2_prune.pruning.tokens import ClipText, Merge, Pruned, VisualTokens
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.merging import make_merged
from store.checkpoint.weights import weights_digest
from store.questions.question import Question

ABOUT_QUESTIONS = frozenset({"question", "clip_text"})
"""What differs between questions about one image."""


@dataclass(frozen=True)
class Reader:
    """What pruners read beside arrays: questions, as the language model and CLIP read them, and the store's projector."""

    experiment: Experiment
    features: Features
    language: Language

    @cached_property
    def clip(self) -> ClipReader:
        """CLIP's text encoder, opened for the first method that reads it; raises as `check_clip` and `open_clip_text` do."""
        check_clip(self.features.store, self.experiment.model)
        return open_clip_text(self.experiment.model, self.language.device)

    @cached_property
    def clip_digest(self) -> str:
        """sha256 of its weights: taken once, whatever many methods read it."""
        return weights_digest(self.clip.encoder.state_dict())

    def question(self, question: Question) -> Float[Tensor, "1 token embed"]:
        """The language model's embeddings of what is asked, `data.post_prompt` included, without template and special tokens."""
        ids = self.language.tokenizer(self._asked(question), add_special_tokens=False)["input_ids"]
        return self.language.embed(torch.tensor([ids], device=self.language.device))

    def clip_text(self, question: Question) -> ClipText:
        """The question in CLIP's space; the image axis is 1."""
        return self.clip.read(self._asked(question))

    def _asked(self, question: Question) -> str:
        return question.question + self.experiment.data.post_prompt


def prune_batch(pruner: Pruner, batch: FeatureBatch, keep: int, reader: Reader) -> tuple[FeatureBatch, Pruned]:
    """The visual tokens that a pruner leaves, and the batch that they belong to: with an image for each question where
    the pruner looks at the question.
    """
    batch, chosen = choose_batch(pruner, batch, keep, reader)
    return batch, make_merged(chosen, batch, reader.features.project)


def choose_batch(pruner: Pruner, batch: FeatureBatch, keep: int, reader: Reader) -> tuple[FeatureBatch, Pruned]:
    """The same as the pruner says it: merges are weights, no token is made of them yet."""
    if "projector" in pruner.reads:
        batch = replace(batch, tokens=replace(batch.tokens, projector=reader.features.project))
    if pruner.reads & ABOUT_QUESTIONS:
        batch = per_question(batch)
        chosen = _prune_questions(pruner, batch, keep, reader)
    else:
        chosen = pruner.prune(batch.tokens.only(pruner.needs, pruner.reads), keep)
    if chosen.kept != keep and not pruner.adaptive:
        raise PrunerMisused(
            f"expected {keep} visual tokens per image of {type(pruner).__name__}, it returned {chosen.kept}: a method keeps its "
            "budget to the token, or is `adaptive` and says its counts"
        )
    return batch, chosen


def per_question(batch: FeatureBatch) -> FeatureBatch:
    """The batch with its images repeated: each question has one of its own."""
    of_question = batch.of_question
    everyone = torch.arange(len(of_question), device=of_question.device)
    return replace(
        batch,
        of_question=everyone,
        tokens=batch.tokens.at(of_question.tolist()),
        projected=batch.projected[of_question],
    )


def _prune_questions(pruner: Pruner, batch: FeatureBatch, keep: int, reader: Reader) -> Pruned:
    """Questions of equal length together: padding would be one more thing that a method could get wrong."""
    texts = [_read(pruner, question, reader) for question in batch.questions]
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        alike[_lengths(text)].append(place)
    parts: list[Pruned] = []
    for places in alike.values():
        tokens = _with_texts(batch.tokens.at(places), [texts[place] for place in places])
        parts.append(pruner.prune(tokens.only(pruner.needs, pruner.reads), keep))
    order = torch.tensor([place for places in alike.values() for place in places])
    return joined(parts, order.argsort().tolist())


Text = tuple[Tensor | None, ClipText | None]


def _read(pruner: Pruner, question: Question, reader: Reader) -> Text:
    return (
        reader.question(question) if "question" in pruner.reads else None,
        reader.clip_text(question) if "clip_text" in pruner.reads else None,
    )


def _lengths(text: Text) -> tuple[int, ...]:
    embedded, clip = text
    parts = [embedded] if clip is None else [embedded, clip.pooled, clip.tokens]
    return tuple(part.shape[1] for part in parts if part is not None)


def _with_texts(tokens: VisualTokens, texts: Sequence[Text]) -> VisualTokens:
    embedded = [one for one, _ in texts if one is not None]
    clips = [one for _, one in texts if one is not None]
    together = (
        replace(clips[0], pooled=torch.cat([c.pooled for c in clips]), tokens=torch.cat([c.tokens for c in clips]))
        if clips
        else None
    )
    return replace(tokens, question=torch.cat(embedded) if embedded else None, clip_text=together)


def joined(parts: Sequence[Pruned], order: Sequence[int]) -> Pruned:
    """Several results as one, its images in `order` of the parts behind each other; shorter ones are padded with zeros."""
    most = max(part.kept for part in parts)

    def rows(found: Sequence[Tensor | None], axes: int) -> Tensor | None:
        """`axes` behind the kept tokens' stay as they are."""
        there = [one for one in found if one is not None]
        padded = [F.pad(one, (0, 0) * axes + (0, most - one.shape[1])) for one in there]
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
