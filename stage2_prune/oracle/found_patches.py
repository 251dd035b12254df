"""The patches that a search found, as a method of an evaluation: what its cells are made of, and how they are answered."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from stage2_prune.compare.gap import CEILING, TARGETS
from stage2_prune.evaluation.answering import Answered, Job
from stage2_prune.evaluation.cells import Cell
from stage2_prune.oracle.search_log import Found
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.pruning.tokens import Beside, Pruned
from stage2_prune.session.ask import ask, prepare
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import per_question
from stage2_prune.session.session import Session


@dataclass(frozen=True)
class FoundPatches(Pruner):
    """A lower bound of the ceiling: patches found by greedy search on the log-probability of an answer.

    The choice was made for each question before, so this method has no `select`: `answers_from` answers its cells.
    """

    reads: ClassVar[frozenset[Beside]] = frozenset({"question"})

    search: str
    """Digest of the settings of the search."""


def cells_of(search: str, budgets: Sequence[int], depth: int) -> list[Cell]:
    """List a cell for both targets at every budget."""
    pruner = FoundPatches(search)
    return [
        Cell(target, pruner, keep, "original", None, Schedule(depth, keep)) for target in TARGETS for keep in budgets
    ]


@dataclass(frozen=True)
class AnswersFrom:
    """Answers cells from what a search found, on the path of every evaluation."""

    found: Mapping[str, Found]
    """By question id."""

    @torch.no_grad()
    def __call__(self, session: Session, jobs: Sequence[Job]) -> Generator[Answered, None, None]:
        """Yield the answers to each batch of questions in each of its cells."""
        section, post_prompt = session.experiment.eval, session.experiment.data.post_prompt
        for batch, job in zip(session.features.batches([job.questions for job in jobs]), jobs, strict=True):
            own = per_question(batch)
            prepared = prepare(session.language, batch.questions, post_prompt, section.rank)
            for cell in job.cells:
                kept = self._kept(batch, cell)
                answers = ask(session.language, own, prepared, kept, cell.positions, section.max_new_tokens)
                yield Answered(cell.name, answers, 0.0, 0)

    def _kept(self, batch: FeatureBatch, cell: Cell) -> Pruned:
        """Return the first patches that were found for each question, in raster order."""
        found = [self.found[question.question_id] for question in batch.questions]
        patches = [of.oracle_self if cell.label == CEILING else of.oracle_answer for of in found]
        index = torch.tensor([sorted(of_question[: cell.schedule.entering]) for of_question in patches])
        return Pruned(index.to(batch.projected.device))
