"""Answer the questions of one batch from pruned visual tokens, and score the answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.language.assemble import ModelInputs, assemble, gather_kept
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.score import choice_scores, is_right, likeliest, log_probabilities
from stage2_prune.language.shared_prefix import share_prefixes
from stage2_prune.pruning.tokens import Pruned
from stage2_prune.session.features import FeatureBatch
from store.checkpoint.text import Prompt, TextSide
from store.questions.question import Question


@dataclass(frozen=True)
class Prepared:
    """The tokens of a batch of questions: made once, used by all methods."""

    prompts: tuple[Prompt, ...]
    choices: tuple[tuple[tuple[int, ...], ...] | None, ...]
    """Token ids of each question's choices, as the model would generate them; None for a question without choices."""


@dataclass(frozen=True)
class Prediction:
    """One answered question. A line of `predictions/*.jsonl` holds one prediction."""

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
    """The question's own text, without template and `data.post_prompt`.

    Files of older versions lack this field and the fields below: all of them are then None.
    """
    visual_tokens: int | None = None
    """Number of visual tokens that entered the language model's first layer."""
    choices: dict[str, float] | None = None
    """Log-probability (in nats) of each of the question's choices, given that the answer is one of the choices."""


def prepare(text: TextSide, questions: Sequence[Question], post_prompt: str, rank: bool = True) -> Prepared:
    """Tokenise the prompts of questions, and their choices too if `rank`.

    Args:
        text: the checkpoint's tokenizer and prompt template.
        questions: the questions of one batch.
        post_prompt: text that is appended to every question.
        rank: whether the choices will be ranked; otherwise they are not tokenised.
    """
    wordings = [question.question + post_prompt for question in questions]
    choices = tuple(
        None if not (rank and question.choices) else text.choice_ids(wording, question.choices)
        for question, wording in zip(questions, wordings, strict=True)
    )
    return Prepared(tuple(text.prompt(wording) for wording in wordings), choices)


def prompts(
    language: Language, batch: FeatureBatch, prepared: Prepared, pruned: Pruned, positions: Positions
) -> ModelInputs:
    """Build the prompts of a batch, with the visual tokens that `pruned` leaves of its images in their slots."""
    visual = gather_kept(batch.projected, pruned)[batch.of_question]
    index = None if pruned.index is None else pruned.index[batch.of_question]
    kept = None if pruned.counts is None else pruned.counts[batch.of_question].tolist()
    return assemble(language, prepared.prompts, visual, index, batch.projected.shape[1], positions, kept)


def prompts_behind_prefixes(
    language: Language, batch: FeatureBatch, prepared: Prepared, pruned: Pruned, positions: Positions
) -> ModelInputs:
    """Build the prompts as `prompts` does, but read the prefix of each image now, once for all questions about it."""
    visual, patches = gather_kept(batch.projected, pruned), batch.projected.shape[1]
    kept = None if pruned.counts is None else pruned.counts.tolist()
    of_question = batch.of_question.tolist()
    return share_prefixes(language, prepared.prompts, of_question, visual, pruned.index, patches, positions, kept)


def ask(
    language: Language,
    batch: FeatureBatch,
    prepared: Prepared,
    pruned: Pruned,
    positions: Positions,
    max_new_tokens: int,
    share_prefix: bool = False,
) -> list[Prediction]:
    """Answer the questions of a batch from the visual tokens that `pruned` leaves of its images.

    With `share_prefix`, system prompt and visual tokens of each image are read once; the language model then prunes nothing.
    """
    build = prompts_behind_prefixes if share_prefix else prompts
    assembled = build(language, batch, prepared, pruned, positions)
    answers = generate(language, assembled, max_new_tokens)
    scores = choice_scores(language, assembled, answers.logits[:, 0], prepared.choices)
    return [
        _prediction(question, text, score, count)
        for question, text, score, count in zip(
            batch.questions, language.decode(answers.tokens), scores, assembled.slots.sum(-1).tolist(), strict=True
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
