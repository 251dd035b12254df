"""Which questions a command asks, said once, and which of them cannot be scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.experiment import Experiment
from stage2_prune.errors import PrunerMisused
from stage2_prune.session.features import Excluded
from store.questions.question import Question, Split, read_questions
from store.questions.splits import say, select

NO_ANSWER = "it has no answer to be scored by"


@dataclass(frozen=True)
class Chosen:
    """The questions that a command takes of a split."""

    questions: list[Question]
    unanswered: list[Excluded]
    """Questions that would be asked if they had an answer; they are never scored as wrong."""


def choose(experiment: Experiment, split: Split, limit: int | None = None) -> list[Question]:
    """The first `limit` questions that the config takes of a split, with or without an answer; says how many of how many.

    Raises PrunerMisused (exit 2) where there are none.
    """
    return _chosen(experiment, [split], limit)[split]


def choose_scored(experiment: Experiment, *splits: Split) -> list[Chosen]:
    """The questions that the config takes of each split and that have an answer; says how many of how many.

    Raises PrunerMisused (exit 2) for a split without any.
    """
    found: list[Chosen] = []
    for split, questions in _chosen(experiment, splits, None).items():
        answered = [question for question in questions if question.can_be_scored]
        if not answered:
            raise PrunerMisused(
                f"expected answered questions in the {split} split, none of {len(questions)} has an answer "
                f"({', '.join(question.question_id for question in questions[:3])}): check data.questions"
            )
        silent = [Excluded(one.question_id, NO_ANSWER) for one in questions if not one.can_be_scored]
        found.append(Chosen(answered, silent))
    return found


def _chosen(experiment: Experiment, splits: Sequence[Split], limit: int | None) -> dict[Split, list[Question]]:
    questions = read_questions(experiment.data)
    chosen: dict[Split, list[Question]] = {split: select(questions, experiment.data, split)[:limit] for split in splits}
    for split, found in chosen.items():
        if not found:
            raise PrunerMisused(f"expected questions in the {split} split, there are none: check data.questions")
    say(questions, experiment.data, splits, limit)
    return chosen
