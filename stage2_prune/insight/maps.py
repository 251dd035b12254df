"""Draw a trained pruner's scores over images, beside those of another method, and what each keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.analysis.kept_sets import SelectingMethods
from stage2_prune.analysis.sheet import Band, Heat, Panel
from stage2_prune.analysis.tower_view import TowerView, read_image, rgb
from stage2_prune.analysis.truth import Truth
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation.cells import Cell
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.result import rank_images
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import QuestionReader, by_length, with_projector
from store.layout.ids import printable
from store.questions.question import Question


@dataclass(frozen=True)
class ScoreMap:
    """How highly a method scores each patch of an image."""

    values: Float[Tensor, " patch"]
    """From 0, the lowest, to 1, the highest."""
    what: str
    """What the values are, in two words."""


def score_map(pruner: Pruner, batch: FeatureBatch, keep: int, reader: QuestionReader) -> ScoreMap:
    """Compute how highly a method scores the patches of a batch of one question.

    A method that ranks patches gives the logarithm of each patch's place, so that the first places can be told apart; another
    trained method gives the weights that it trains with.

    Raises PrunerMisused (exit 2) for a method that has neither.
    """
    ((_, tokens),) = by_length(pruner, with_projector(pruner, batch, reader), [0], reader)
    if pruner.nested:
        place = rank_images(pruner, tokens, tokens.patches)[0].argsort()
        return ScoreMap(1 - (1 + place).log().cpu() / log(tokens.patches), "log rank")
    if isinstance(pruner, TrainedPruner):
        return ScoreMap(pruner.soft(tokens, keep)[0].float().cpu(), "soft weight")
    raise PrunerMisused(f"expected a method that ranks patches, {type(pruner).__name__} does not: name another")


@torch.no_grad()
def bands(
    selection: SelectingMethods, cells: Sequence[Cell], asked: Sequence[Question], truth: Truth
) -> list[Band]:  # fmt: skip
    """Make a band for each question: the image, and for each cell its score map and what it keeps."""
    session = selection.session
    experiment, features = session.experiment, session.features
    view = TowerView(experiment.model, features.grid)
    made: list[Band] = []
    for batch in features.batches([[question] for question in asked]):
        question = batch.questions[0]
        by_content = features.store.plan.identity == "content"
        with read_image(experiment.data, question.image, batch.tokens.image_ids[0] if by_content else None) as image:
            picture = view.picture(rgb(image))
        panels: list[Panel | Heat] = []
        for cell in cells:
            scored = score_map(cell.pruner, batch, cell.schedule.entering, session.reader)
            kept, _ = selection.kept(cell, batch)
            nothing = np.zeros(features.grid, dtype=bool)
            panels += [
                Heat(cell.label, scored.what, scored.values.reshape(features.grid).numpy()),
                Panel(
                    f"{cell.label} keeps",
                    str(int(kept.tokens[0])),
                    kept.patches[0].reshape(features.grid).numpy(),
                    nothing,
                    nothing,
                ),
            ]
        shown = truth.get(question.question_id)
        in_grid = None if shown is None else shown.reshape(features.grid).numpy()
        made.append(Band(printable(question.image), question.question, picture, in_grid, panels))
    return made
