"""Let the language model answer with what a pruner leaves of some images: the one place that tells before it from inside it."""

from collections.abc import Sequence

from stage2_prune.pruning.practice import Practice, Shown, joined
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.trained_inside import Taught, TrainedInside
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import ABOUT_QUESTIONS, QuestionReader, by_length, order_of
from stage2_prune.training.forward.layered import Layered
from stage2_prune.training.packed import PackedLessons, answer_logits_together


def taught_by(
    pruner: TrainedPruner,
    batch: FeatureBatch,
    images: Sequence[int],
    practice: Practice,
    reader: QuestionReader,
    packed: Sequence[PackedLessons],
) -> Taught:
    """Return the logits of the answers and the method's own losses, for images of a batch of which `practice` is about."""
    language = reader.language
    if isinstance(pruner, TrainedInside):
        tokens = batch.tokens.only(pruner.needs, pruner.reads).at(images)
        schedule = pruner.schedule(tokens.patches, language.depth, practice.keep, reader.experiment.prune.match)
        return pruner.teach(Layered(language, practice.projected, packed, pruner.asks), tokens, practice, schedule)
    shown = show(pruner, batch, images, practice, reader)
    visual = practice.projected if shown.visual is None else shown.visual
    return Taught(answer_logits_together(language, visual, shown.weights, packed), shown.losses)


def show(
    pruner: TrainedPruner, batch: FeatureBatch, images: Sequence[int], practice: Practice, reader: QuestionReader
) -> Shown:
    """Let a pruner decide what the language model is shown of some images of a batch, of which `practice` is about."""
    if not pruner.reads & ABOUT_QUESTIONS:
        return pruner.practise(batch.tokens.only(pruner.needs, pruner.reads).at(images), practice)
    groups = by_length(pruner, batch, images, reader)
    parts = [
        pruner.practise(tokens.only(pruner.needs, pruner.reads), practice.at(numbers)) for numbers, tokens in groups
    ]
    return joined(parts, order_of([numbers for numbers, _ in groups]))
