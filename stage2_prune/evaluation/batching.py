"""Cut questions into the batches that are asked together."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.experiment import EvalSection
from store.questions.question import Question


@dataclass(frozen=True)
class Batching:
    """How questions are cut into batches."""

    size: int
    """Questions per batch, at most."""
    by_image: bool = False
    """Whether questions about one image stand together; they are divided only where there are more of them than `size`."""

    @classmethod
    def of(cls, section: EvalSection) -> "Batching":
        """Return the batching of an evaluation: by image where the questions about an image share a prefill."""
        return cls(section.batch_size, section.share_prefix)

    def cut(self, questions: Sequence[Question]) -> list[list[Question]]:
        """Cut questions into batches, in their order or, by image, in the order in which images come first."""
        if not self.by_image:
            return [list(questions[start : start + self.size]) for start in range(0, len(questions), self.size)]
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
