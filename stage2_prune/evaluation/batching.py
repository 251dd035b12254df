"""Cut questions into the batches that are asked together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from configs.experiment import Experiment
from stage2_prune.session.batch_size import batch_size
from store.questions.question import Question

WINDOW_BATCHES = 32
"""The number of batches among which questions are sorted by length. Later questions change no window that is full."""


@dataclass(frozen=True)
class Batching:
    """How questions are cut into batches."""

    size: int
    """Questions per batch, at most."""
    by_image: bool = False
    """Whether questions about one image stand together; they are divided only where there are more of them than `size`."""
    by_length: bool = False
    """Whether questions are sorted by the length of their text, within windows of WINDOW_BATCHES batches."""

    @classmethod
    def of(cls, experiment: Experiment) -> "Batching":
        """Return the batching of an evaluation: by image where the questions about an image share a prefill."""
        section = experiment.eval
        return cls(batch_size(experiment), section.share_prefix, section.sort_by_length and not section.share_prefix)

    def lacking(self, asked: Sequence[Question], answered: Collection[str]) -> list[Question]:
        """Return the questions without an answer, and where windows are sorted all questions of such a question's window.

        So the windows of a split that has grown stay as they are, but for the last one, which is asked again.
        """
        windows = self._cut(asked, self.size * WINDOW_BATCHES if self.by_length else 1)
        wanted = (window for window in windows if any(question.question_id not in answered for question in window))
        return [question for window in wanted for question in window]

    def cut(self, questions: Sequence[Question]) -> list[list[Question]]:
        """Cut questions into batches: in their order, sorted within windows, or in the order in which images come first."""
        if self.by_image:
            return self._cut_by_image(questions)
        if self.by_length:
            windows = self._cut(questions, self.size * WINDOW_BATCHES)
            questions = [question for window in windows for question in sorted(window, key=_length)]
        return self._cut(questions, self.size)

    @staticmethod
    def _cut(questions: Sequence[Question], size: int) -> list[list[Question]]:
        return [list(questions[start : start + size]) for start in range(0, len(questions), size)]

    def _cut_by_image(self, questions: Sequence[Question]) -> list[list[Question]]:
        about: dict[str, list[Question]] = {}
        for question in questions:
            about.setdefault(question.image, []).append(question)
        batches: list[list[Question]] = [[]]
        for asked in about.values():
            for start in range(0, len(asked), self.size):
                part = asked[start : start + self.size]
                if len(batches[-1]) + len(part) > self.size:
                    batches.append([])
                batches[-1] += part
        return batches if batches[-1] else []


def _length(question: Question) -> int:
    """Return the number of characters, which no tokenizer has to be opened for."""
    return len(question.question)
