"""Open what a method learns from beside the answers."""

from collections.abc import Sequence

from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.session import Session
from stage2_prune.training.gradients import Signals
from store.questions.question import Question


def signals_for(session: Session, pruner: TrainedPruner, train: Sequence[Question]) -> Signals:
    """Find what `pruner` learns from, for the training questions.

    Raises PrunerMisused (exit 2) where a method learns from regions and no question says where its object is.
    """
    regions = {}
    if "regions" in pruner.learns_from:
        found, reason = find_truth(session.experiment, train, session.features.grid)
        if not found:
            raise PrunerMisused(
                f"train.pruner: {type(pruner).__name__} learns from the regions of questions, and {reason}: give `patches` or "
                "`region` in data.questions, or train another method"
            )
        regions = dict(found)
    return Signals(regions)
