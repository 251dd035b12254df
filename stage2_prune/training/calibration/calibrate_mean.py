"""Calibrate the thresholds of a method that keeps a number of its own of each image, so that budgets are met in the mean."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.pruning.scored import ThresholdPruner
from stage2_prune.session.batch_size import batch_size
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import (
    ABOUT_QUESTIONS,
    QuestionReader,
    by_length,
    order_of,
    per_question,
    with_projector,
)
from stage2_prune.session.session import Session
from store.questions.question import Question


@torch.no_grad()
def calibrate_mean(pruner: ThresholdPruner, session: Session, questions: Sequence[Question]) -> None:
    """Set the module's threshold of every budget to what the questions need to keep as many patches in the mean."""
    size = batch_size(session.experiment)
    batches = [questions[start : start + size] for start in range(0, len(questions), size)]
    scores = [scores_of(pruner, batch, session.reader) for batch in session.features.batches(batches)]
    pruner.thresholds.copy_(thresholds_of(torch.cat(scores)))


def thresholds_of(scores: Float[Tensor, "question patch"]) -> Float[Tensor, " patch"]:
    """Find for each budget the threshold that as many scores reach as the budget has tokens, in the mean over questions.

    A question keeps its best patch at every threshold, so that this patch counts as reaching it. Thresholds are finite, as saved
    weights have to be.
    """
    highest = torch.finfo(scores.dtype).max
    best = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(1, keepdim=True), True)
    falling = scores.masked_fill(best, highest).flatten().sort(descending=True).values
    thresholds = falling[len(scores) - 1 :: len(scores)].clone()
    thresholds[-1] = -highest  # all patches are all patches, whatever another image scores
    return thresholds


def scores_of(pruner: ThresholdPruner, batch: FeatureBatch, reader: QuestionReader) -> Float[Tensor, "question patch"]:
    """Score the patches of a batch for each of its questions."""
    batch = with_projector(pruner, batch, reader)
    if not pruner.reads & ABOUT_QUESTIONS:
        return pruner.policy(batch.tokens.only(pruner.needs, pruner.reads))[batch.of_question]
    groups = by_length(pruner, per_question(batch), range(len(batch.questions)), reader)
    parts = [pruner.policy(tokens.only(pruner.needs, pruner.reads)) for _, tokens in groups]
    return torch.cat(parts)[order_of([numbers for numbers, _ in groups])]
