"""Which patches show what a question is about, where a data set says so."""

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
"""By question id; questions of which nothing is known, or that are about nothing that is there, are left out."""


def find_truth(experiment: Experiment, asked: Sequence[Question], grid: tuple[int, int]) -> tuple[Truth, str | None]:
    """What is known of the questions' objects, and why nothing is, if so.

    `patches` are taken as they are. `region` is drawn into an empty image of the same size, and that is shown to the
    checkpoint's image processor: exact whatever it resizes, crops or pads, but the image file's size must be known.
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
    view = TowerView(experiment.model, grid)
    found: dict[str, Bool[Tensor, " patch"]] = {}
    for question in ProgressBar(boxed, "boxes", unit="questions"):
        with read_image(experiment.data, question.image) as image:
            shown = view.showing(image.size, question.region or ())
        if shown is not None:
            found[question.question_id] = shown
    return found


def _marked(question: Question, grid: tuple[int, int]) -> Bool[Tensor, " patch"]:
    count = grid[0] * grid[1]
    places = question.patches or ()
    if max(places) >= count:
        raise PrunerMisused(
            f"expected patches below {count}, as many as an image of this store has, question {question.question_id} names "
            f"{max(places)}: its patches are those of another tower, give `region` instead"
        )
    marked = torch.zeros(count, dtype=torch.bool)
    marked[list(places)] = True
    return marked
