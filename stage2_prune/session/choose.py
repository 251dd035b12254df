"""Choose the questions that a command asks, report their number, and set aside questions that cannot be scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.experiment import Experiment
from stage2_prune.errors import PrunerMisused
from stage2_prune.session.features import Excluded
from store.questions.question import Question, Split, no_questions, read_questions
from store.questions.splits import say, select

NO_ANSWER = "it has no answer to be scored by"


@dataclass(frozen=True)
class Chosen:
    """The questions of a split that a command asks, and the questions that the command leaves out for want of an answer."""

    questions: list[Question]
    unanswered: list[Excluded]
    """Questions without an answer to be scored by: they are not asked, and never count as wrong."""


def choose(experiment: Experiment, split: Split, limit: int | None = None) -> list[Question]:
    """Choose the first `limit` questions that the config takes of a split, with or without an answer.

    Prints how many questions of how many are taken.

    Raises:
        PrunerMisused: (exit 2) if the config names no questions, or the split has none.
    """
    return _chosen(experiment, [split], limit)[split]


def choose_scored(experiment: Experiment, *splits: Split) -> list[Chosen]:
    """Choose the questions with an answer that the config takes of each split.

    Prints how many questions of how many are taken.

    Raises:
        PrunerMisused: (exit 2) for a split without such a question.
    """
    splits_chosen: list[Chosen] = []
    for split, questions in _chosen(experiment, splits, None).items():
        answered = [question for question in questions if question.can_be_scored]
        if not answered:
            names = ", ".join(question.question_id for question in questions[:3])
            reason = f"none of {len(questions)} has an answer ({names})"
            raise PrunerMisused(no_questions(f"answered questions in the {split} split", reason))
        unanswered = [Excluded(question.question_id, NO_ANSWER) for question in questions if not question.can_be_scored]
        splits_chosen.append(Chosen(answered, unanswered))
    return splits_chosen


def _chosen(experiment: Experiment, splits: Sequence[Split], limit: int | None) -> dict[Split, list[Question]]:
    if experiment.data.questions is None:
        raise PrunerMisused(
            "expected a file of questions to ask, data.questions is not set: set it in the config, or with --data.questions"
        )
    questions = read_questions(experiment.data)
    chosen: dict[Split, list[Question]] = {split: select(questions, experiment.data, split)[:limit] for split in splits}
    for split, taken in chosen.items():
        if not taken:
            raise PrunerMisused(no_questions(f"questions in the {split} split", "there are none"))
    say(questions, experiment.data, splits, limit)
    return chosen
