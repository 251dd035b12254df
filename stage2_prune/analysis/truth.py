"""Find the patches that show what a question is about, where the data set says so."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from configs.errors import EncodeOnceError
from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage2_prune.analysis.tower_view import TowerView, read_image
from stage2_prune.errors import PrunerMisused
from store.questions.question import Question

Truth = Mapping[str, Bool[Tensor, " patch"]]
"""The patches that show a question's object, by question id. Questions are left out if nothing is known about their object,
or if no patch shows it."""


def find_truth(experiment: Experiment, asked: Sequence[Question], grid: tuple[int, int]) -> tuple[Truth, str | None]:
    """Find the patches that show the questions' objects.

    A question's `patches` are taken as they are. Its `region` is drawn into an empty image of the same size, which the
    checkpoint's image processor then processes. This is exact whatever the processor resizes, crops or pads, but the size
    of the image file must be known.

    Returns:
        The patches by question id, and, if nothing or only a part is known, the reason.
    """
    marked = {q.question_id: _marked(q, grid) for q in asked if q.patches}
    boxed = [q for q in asked if q.patches is None and q.region]
    try:
        boxes = _boxes(experiment, boxed, grid) if boxed else {}
    except EncodeOnceError as error:
        return marked, f"boxes cannot be laid over the patches: {error}"
    if marked or boxes:
        return marked | boxes, None
    return {}, "no question says by `patches` or `region` where in the image its object is"


def _boxes(
    experiment: Experiment, boxed: Sequence[Question], grid: tuple[int, int]
) -> dict[str, Bool[Tensor, " patch"]]:
    """Find the patches of the questions whose object is given by boxes."""
    view = TowerView(experiment.model, grid)
    patches: dict[str, Bool[Tensor, " patch"]] = {}
    for question in ProgressBar(boxed, "boxes", unit="questions"):
        with read_image(experiment.data, question.image) as image:
            shown = view.showing(image.size, question.region or ())
        if shown is not None:
            patches[question.question_id] = shown
    return patches


def _marked(question: Question, grid: tuple[int, int]) -> Bool[Tensor, " patch"]:
    """Mark the patches of a question whose object is given by patches."""
    count = grid[0] * grid[1]
    numbers = question.patches or ()
    if max(numbers) >= count:
        raise PrunerMisused(
            f"expected patches below {count}, as many as an image of this store has, question {question.question_id} names "
            f"{max(numbers)}: its patches are those of another tower, give `region` instead"
        )
    marked = torch.zeros(count, dtype=torch.bool)
    marked[list(numbers)] = True
    return marked
