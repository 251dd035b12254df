"""What a run of parity compared, and what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.experiment import StoreLocation
from stage2_prune.language.assemble import Layout
from stage2_prune.parity.differences import Pair
from stage2_prune.session.features import Excluded
from store.questions.exchange import Asked
from store.questions.question import Question


@dataclass(frozen=True)
class Batch:
    """One batch of an evaluation, laid out once for all modes."""

    questions: list[Question]
    layout: Layout
    asked: Asked


@dataclass
class Scorer:
    """The pruner whose mask was multiplied in, overridden to all ones after real scoring."""

    label: str
    """Name in the config's methods."""
    parameters: Mapping[str, Any]
    weights: str | None = None
    """Of a trained method: `trained`, or `freshly seeded` where there are none yet; None for all others."""
    keep: int | None = None
    """Visual tokens per image that it was asked for."""


@dataclass
class Findings:
    """What was compared, and what came out."""

    store: StoreLocation
    batches: Sequence[Batch]
    excluded: Sequence[Excluded]
    without: dict[str, str]
    """Modes that could not run, with the reason."""
    right: dict[str, int]
    """Right answers by mode."""
    pairs: list[Pair]
    scorer: Scorer
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of one image, in the words of the hunt."""
    notes: list[str] = field(default_factory=list)

    @property
    def questions(self) -> int:
        """How many were asked."""
        return sum(len(batch.questions) for batch in self.batches)

    @property
    def scored(self) -> int:
        """How many of them have an answer to be scored by."""
        return sum(question.can_be_scored for batch in self.batches for question in batch.questions)

    @property
    def identical(self) -> bool | None:
        """None where nothing differs, but a mode could not run."""
        if not all(pair.equal for pair in self.pairs):
            return False
        return None if self.without else True
