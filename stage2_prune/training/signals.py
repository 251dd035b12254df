"""Open what a training learns from beside the answers."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.session import Session
from stage2_prune.training.gradients import Guidance
from stage2_prune.training.step import make_lesson
from stage2_prune.training.teacher import ImageLessons, open_attention, open_teacher
from store.questions.question import Question


def guidance_for(session: Session, pruner: TrainedPruner, train: Sequence[Question]) -> Guidance:
    """Open what `pruner` and the config's section `train` learn from, for the training questions.

    Raises:
        PrunerMisused: (exit 2) where a method learns from regions and no question says where its object is.
        NotTaught: (exit 5) naming `teach`, if signals of the unpruned model are missing.
    """
    regions = _regions(session, pruner, train) if "regions" in pruner.learns_from else {}
    cached, looks = session.experiment.train.distils_cached, "attention" in pruner.learns_from
    if not (cached or looks):
        return Guidance(regions)
    asked = _asked(session, train)
    return Guidance(
        regions, open_attention(session, asked) if looks else None, open_teacher(session, asked) if cached else None
    )


def identity_of(guidance: Guidance) -> dict[str, str]:
    """Name what made the cached signals, of which a training's result depends."""
    signals = {"train.teacher": guidance.teacher, "train.attention": guidance.attention}
    return {name: signal.identity for name, signal in signals.items() if signal is not None}


def _asked(session: Session, questions: Sequence[Question]) -> list[ImageLessons]:
    """Tokenise all training questions."""
    post_prompt = session.experiment.data.post_prompt
    return [(session.features.image_id(q), [make_lesson(session.language, q, post_prompt)]) for q in questions]


def _regions(session: Session, pruner: TrainedPruner, train: Sequence[Question]) -> Mapping[str, Tensor]:
    found, reason = find_truth(session.experiment, train, session.features.grid)
    if not found:
        raise PrunerMisused(
            f"train.pruner: {type(pruner).__name__} learns from the regions of questions, and {reason}: give `patches` or "
            "`region` in data.questions, or train another method"
        )
    return found
