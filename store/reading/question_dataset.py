"""A torch dataset of questions about stored images, with the features of each question's image."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from store.questions.question import Question
from store.reading.by_name import read_rows, rows_of
from store.reading.reader import FeatureStore


class Example(NamedTuple):
    """One question: the features of its image, the question, and the answer that counts as right."""

    features: dict[str, Shaped[Tensor, "..."]]
    """By array: `projected` is (patch, embed)."""
    question: str
    answer: str
    """The first of the question's answers; empty for a question without an answer."""


class QuestionDataset(Dataset[Example]):
    """Questions with the cached features of their images, for a training loop of your own.

    Questions about images that could not be encoded are in `left_out`, with the reason. torch's default collate makes
    batches of features (question, patch, embed) by array, and lists of questions and answers. Reading copies from the
    page cache, so a DataLoader without workers is the fastest.

    Args:
        store: The store of the images.
        questions: Questions about its images, such as `read_questions(experiment.data)` returns.
        arrays: Names of the arrays to read.

    Raises:
        StoreMissing: (exit 5) The store lacks an array, or an image's shard is not extracted yet.
        RowUnavailable: (exit 4) The store does not know an image.

    """

    def __init__(
        self, store: FeatureStore, questions: Sequence[Question], arrays: Sequence[str] = ("projected",)
    ) -> None:
        store.require(arrays)
        self.store, self.arrays = store, tuple(arrays)
        failed = store.failed(arrays)
        rows = rows_of(store, [question.image for question in questions])
        store.require_complete(arrays, set(rows) - failed.keys())
        asked = [(question, row) for question, row in zip(questions, rows, strict=True) if row not in failed]
        self.questions = [question for question, _ in asked]
        self.rows = [row for _, row in asked]
        self.left_out = {q.question_id: failed[row] for q, row in zip(questions, rows, strict=True) if row in failed}

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> Example:
        """Return one question with the features of its image."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Return a batch of questions, as a DataLoader asks for it; an image is read once, however many ask about it."""
        rows = list(dict.fromkeys(self.rows[index] for index in indices))
        index_of = {row: number for number, row in enumerate(rows)}
        read = {name: read_rows(self.store, name, rows) for name in self.arrays}
        return [
            Example(
                {name: features[index_of[self.rows[index]]] for name, features in read.items()},
                self.questions[index].question,
                next(iter(self.questions[index].answers), ""),
            )
            for index in indices
        ]
