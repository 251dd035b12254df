"""The metrics of every cell on every question, from one pass over the store."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from configs.progress import ProgressBar
from stage2_prune.analysis import metrics
from stage2_prune.analysis.kept_sets import Selection, is_grid, reads_question
from stage2_prune.analysis.truth import Truth
from stage2_prune.evaluation.cells import Cell
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.session.features import FeatureBatch
from store.questions.question import Question

RAW, AREA = "raw", "image_area"
"""Arrays that are measured on, where the store has them."""
PER_QUESTION = "recall"
"""The one metric that has a value for each question; all others have one for each image."""
Values = dict[str, list[float]]
"""By metric; NaN where there is no value."""
Measure = Callable[[Bool[Tensor, " patch"]], float]


@dataclass
class Measured:
    """What was found, image by image and question by question, in the order in which they were read."""

    questions: list[Question] = field(default_factory=list)
    cells: dict[str, Values] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """By the cell's name."""
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Visual tokens that go on, by the cell's name: for each question."""
    jaccard: dict[int, list[Float[Tensor, "image method method"]]] = field(default_factory=lambda: defaultdict(list))
    """By budget; methods are those of `compared`."""


def by_image(asked: Sequence[Question], at_least: int) -> list[list[Question]]:
    """Batches of at least so many questions, but the last, in which every image has all of its questions."""
    gathered: dict[str, list[Question]] = {}
    for question in asked:
        gathered.setdefault(question.image, []).append(question)
    batches: list[list[Question]] = [[]]
    for questions in gathered.values():
        if len(batches[-1]) >= at_least:
            batches.append([])
        batches[-1] += questions
    return batches


def compared(cells: Sequence[Cell]) -> dict[int, list[list[Cell]]]:
    """By budget the methods that keep just that many, each with its seeds: what a Jaccard index can be taken of.

    A published budget of such a method is a number of tokens too, and not compared a second time.
    """
    found: dict[int, list[list[Cell]]] = defaultdict(list)
    for (_, keep), seeds in groupby(cells, key=lambda cell: (cell.label, cell.keep)):
        group = list(seeds)
        if isinstance(keep, int) and keep and group[0].pruner.budget == "exact" and not group[0].pruner.adaptive:
            found[keep].append(group)
    return dict(found)


@torch.no_grad()
def measure(selection: Selection, cells: Sequence[Cell], asked: Sequence[Question], truth: Truth) -> Measured:
    """Every cell on every question; the store is read once."""
    features, section = selection.session.features, selection.session.experiment.eval
    measured = Measured()
    coverage = metrics.Coverage(features.grid) if is_grid(features) else None
    groups = compared(cells)
    with ProgressBar(what="analyse", total=len(asked), unit="questions") as bar:
        for batch in features.batches(by_image(asked, section.batch_size)):
            measures = _measures(batch, coverage)
            kept: dict[str, Bool[Tensor, "question patch"]] = {}
            for cell in cells:
                found, rows = selection.kept(cell, batch)
                kept[cell.name] = found.patches[rows]
                measured.tokens[cell.name] += found.tokens[rows].tolist()
                _measure_cell(measured.cells[cell.name], cell, kept[cell.name], batch, measures, truth)
            for keep, methods in groups.items():
                measured.jaccard[keep].append(_jaccard(methods, kept, _questions_of_images(batch)))
            measured.questions += batch.questions
            bar.update(len(batch.questions))
    return measured


def _measures(batch: FeatureBatch, coverage: metrics.Coverage | None) -> list[dict[str, Measure]]:
    """What can be measured on each image."""
    arrays = batch.tokens.arrays
    images = range(len(batch.tokens.image_ids))
    found: list[dict[str, Measure]] = [{} for _ in images]
    cosine = cosine_similarity(arrays[RAW]).cpu() if RAW in arrays else None
    for image in images:
        if coverage is not None:
            found[image] |= {"nearest_kept": coverage.nearest, "cells_covered": coverage.cells}
        if cosine is not None:
            found[image]["duplicates"] = partial(metrics.duplicates, cosine[image])
        if AREA in arrays and arrays[AREA].shape[1] == batch.tokens.patches:
            found[image]["padding"] = partial(metrics.padding, arrays[AREA][image].cpu())
    return found


def _questions_of_images(batch: FeatureBatch) -> list[list[int]]:
    places: list[list[int]] = [[] for _ in batch.tokens.image_ids]
    for place, image in enumerate(batch.of_question.tolist()):
        places[image].append(place)
    return places


def _measure_cell(
    values: Values, cell: Cell, kept: Bool[Tensor, "question patch"], batch: FeatureBatch,
    measures: Sequence[Mapping[str, Measure]], truth: Truth,
) -> None:  # fmt: skip
    reads = reads_question(cell.pruner)
    for of_image, places in zip(measures, _questions_of_images(batch), strict=True):
        distinct = kept[places if reads else places[:1]]
        for name, measure_one in of_image.items():
            values[name].append(float(np.mean([measure_one(one) for one in distinct])))
        if reads:
            texts = [batch.questions[place].question for place in places]
            values["question_sensitivity"].append(metrics.question_sensitivity(distinct, texts))
    for question, one in zip(batch.questions, kept, strict=True):
        values[PER_QUESTION].append(metrics.recall(truth.get(question.question_id), one))


def _jaccard(
    methods: Sequence[Sequence[Cell]],
    kept: Mapping[str, Bool[Tensor, "question patch"]],
    places: Sequence[Sequence[int]],
) -> Float[Tensor, "image method method"]:
    """Mean over an image's questions and over seeds, those of two randomised methods in pairs; 1 for a method and itself."""
    rounds = max(len(seeds) for seeds in methods)
    drawn = (torch.stack([kept[seeds[one % len(seeds)].name] for seeds in methods]) for one in range(rounds))
    alike = torch.stack([metrics.jaccard(every, every) for every in drawn]).mean(0)
    return torch.stack([alike[list(of_image)].mean(0) for of_image in places])
