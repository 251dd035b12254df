"""Questions of one batch, answered from pruned visual tokens and scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.language.assemble import Batch, assemble, gather_kept
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.score import choice_scores, is_right, likeliest, log_probabilities
from stage2_prune.pruning.tokens import Pruned
from stage2_prune.session.features import FeatureBatch
from store.checkpoint.text import Prompt, Text
from store.questions.question import Question


@dataclass(frozen=True)
class Prepared:
    """A batch of questions, tokenised once for all methods."""

    prompts: tuple[Prompt, ...]
    choices: tuple[tuple[tuple[int, ...], ...] | None, ...]
    """Token ids of each choice where it would be answered; None where a question has no choices."""


@dataclass(frozen=True)
class Prediction:
    """One answered question: a line of `predictions/*.jsonl`."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    question_id: str
    image: str
    kind: str | None
    answers: tuple[str, ...]
    prediction: str
    """Generated text, as the model wrote it."""
    right: bool
    ranked: str | None
    """The likeliest of the question's choices."""
    ranked_right: bool | None
    question: str | None = None
    """As it was asked, without template and `data.post_prompt`; None in files of older versions, as all that follows."""
    visual_tokens: int | None = None
    """That entered the language model's first layer."""
    choices: dict[str, float] | None = None
    """Log-probability of each of the question's choices, given that the answer is one of them."""


def prepare(text: Text, questions: Sequence[Question], post_prompt: str, rank: bool = True) -> Prepared:
    """Tokenise prompts and choices, which are left out unless `rank`; `post_prompt` is appended to every question."""
    asked = [question.question + post_prompt for question in questions]
    choices = tuple(
        None if not (rank and q.choices) else tuple(text.answer_ids(said, choice) for choice in q.choices)
        for q, said in zip(questions, asked, strict=True)
    )
    return Prepared(tuple(text.prompt(said) for said in asked), choices)


def prompts(language: Language, batch: FeatureBatch, prepared: Prepared, pruned: Pruned, positions: Positions) -> Batch:
    """The prompts of a batch with the visual tokens that `pruned` leaves of its images."""
    visual = gather_kept(batch.projected, pruned)[batch.of_question]
    index = None if pruned.index is None else pruned.index[batch.of_question]
    kept = None if pruned.counts is None else pruned.counts[batch.of_question].tolist()
    return assemble(language, prepared.prompts, visual, index, batch.projected.shape[1], positions, kept)


def ask(
    language: Language,
    batch: FeatureBatch,
    prepared: Prepared,
    pruned: Pruned,
    positions: Positions,
    max_new_tokens: int,
) -> list[Prediction]:
    """Answer a batch from the visual tokens that `pruned` leaves of its images."""
    assembled = prompts(language, batch, prepared, pruned, positions)
    said = generate(language, assembled, max_new_tokens)
    scores = choice_scores(language, assembled, said.logits[:, 0], prepared.choices)
    return [
        _prediction(question, text, score, count)
        for question, text, score, count in zip(
            batch.questions, language.decode(said.tokens), scores, assembled.slots.sum(-1).tolist(), strict=True
        )
    ]


def _prediction(
    question: Question, text: str, scores: Float[Tensor, " choice"] | None, visual_tokens: int
) -> Prediction:
    choices = None if scores is None or question.choices is None else log_probabilities(question.choices, scores)
    ranked = None if scores is None or question.choices is None else question.choices[likeliest(scores)]
    return Prediction(
        question.question_id,
        question.image,
        question.kind,
        question.answers,
        text,
        is_right(text, question.answers),
        ranked,
        None if ranked is None else is_right(ranked, question.answers),
        question.question,
        visual_tokens,
        choices,
    )
