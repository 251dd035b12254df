"""Hold what a run of parity compares, and what it finds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.experiment import StoreLocation
from stage2_prune.language.assemble import PromptLayout
from stage2_prune.parity.differences import Pair
from stage2_prune.session.features import Excluded
from store.questions.exchange import BatchImages
from store.questions.question import Question


@dataclass(frozen=True)
class AskedBatch:
    """A batch of questions, laid out once for all modes."""

    questions: list[Question]
    layout: PromptLayout
    asked: BatchImages
    """The images of the batch, in the form that the full model's process reads."""


@dataclass
class ParityScorer:
    """The pruner that scored for soft_pruning: its mask was overridden to all ones, then multiplied into the features."""

    label: str
    """The pruner's name in the config's methods."""
    parameters: Mapping[str, Any]
    weights: str | None = None
    """`trained` or, before any training, `freshly seeded`; None for a method without weights."""
    keep: int | None = None
    """Number of visual tokens per image that the pruner was asked for."""


@dataclass
class Findings:
    """What a run of parity compares, and what it has found so far."""

    store: StoreLocation
    batches: Sequence[AskedBatch]
    excluded: Sequence[Excluded]
    without: dict[str, str]
    """Modes that cannot run, each with the reason."""
    right: dict[str, int]
    """Number of right answers by mode."""
    pairs: list[Pair]
    """A comparison of every two modes that can run."""
    scorer: ParityScorer
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of one image's features, by their names in the report."""
    notes: list[str] = field(default_factory=list)
    """Sentences that explain possible differences."""

    @property
    def questions(self) -> int:
        """Number of questions that are asked."""
        return sum(len(batch.questions) for batch in self.batches)

    @property
    def scored(self) -> int:
        """Number of questions that are asked and have an answer to be scored by."""
        return sum(question.can_be_scored for batch in self.batches for question in batch.questions)

    @property
    def identical(self) -> bool | None:
        """Whether all four modes gave the same bits; None if nothing differs but a mode could not run."""
        if not all(pair.equal for pair in self.pairs):
            return False
        return None if self.without else True
