"""Measure every cell on every question, in one pass over the store."""

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
from stage2_prune.analysis.kept_sets import SelectingMethods, is_grid, reads_question
from stage2_prune.analysis.truth import Truth
from stage2_prune.evaluation.cells import Cell
from stage2_prune.primitives.similarity import cosine_similarity
from stage2_prune.session.batch_size import batch_size
from stage2_prune.session.features import FeatureBatch
from store.questions.question import Question

RAW, AREA = "raw", "image_area"
"""Arrays that metrics read, if the store has them."""
PER_QUESTION = "recall"
"""The only metric with a value for each question; all other metrics have a value for each image."""
MetricValues = dict[str, list[float]]
"""The values of each metric; NaN where a value is unknown."""
Measure = Callable[[Bool[Tensor, " patch"]], float]
"""Computes a metric of the patches that are kept of one image."""


@dataclass
class Measured:
    """All measured values, image by image and question by question, in the order of reading."""

    questions: list[Question] = field(default_factory=list)
    cells: dict[str, MetricValues] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """The values of each cell, by the cell's name."""
    tokens: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """For each question the number of visual tokens that are kept, by the cell's name."""
    jaccard: dict[int, list[Float[Tensor, "image method method"]]] = field(default_factory=lambda: defaultdict(list))
    """Jaccard indices by budget, for the methods that `compared` lists, in its order."""


def by_image(asked: Sequence[Question], at_least: int) -> list[list[Question]]:
    """Deal questions into batches of at least `at_least` (the last may be smaller), without dividing an image's questions."""
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
    """Group methods with an exact budget by that budget, each with its seeds; only these can be compared by Jaccard index.

    A published budget of such a method is a number of tokens too, and is not compared a second time.
    """
    by_budget: dict[int, list[list[Cell]]] = defaultdict(list)
    for (_, keep), seeds in groupby(cells, key=lambda cell: (cell.label, cell.keep)):
        group = list(seeds)
        if isinstance(keep, int) and keep and group[0].pruner.budget == "exact" and not group[0].pruner.adaptive:
            by_budget[keep].append(group)
    return dict(by_budget)


@torch.no_grad()
def measure(selection: SelectingMethods, cells: Sequence[Cell], asked: Sequence[Question], truth: Truth) -> Measured:
    """Measure every cell on every question; the store is read once.

    Args:
        selection: the store and the methods.
        cells: the cells to measure.
        asked: the questions.
        truth: the patches that show what a question is about, where they are known.
    """
    features, size = selection.session.features, batch_size(selection.session.experiment)
    measured = Measured()
    coverage = metrics.Coverage(features.grid) if is_grid(features) else None
    groups = compared(cells)
    with ProgressBar(what="analyse", total=len(asked), unit="questions") as bar:
        for batch in features.batches(by_image(asked, size)):
            measures = _measures(batch, coverage)
            kept: dict[str, Bool[Tensor, "question patch"]] = {}
            for cell in cells:
                of_batch, rows = selection.kept(cell, batch)
                kept[cell.name] = of_batch.patches[rows]
                measured.tokens[cell.name] += of_batch.tokens[rows].tolist()
                _measure_cell(measured.cells[cell.name], cell, kept[cell.name], batch, measures, truth)
            for keep, methods in groups.items():
                measured.jaccard[keep].append(_jaccard(methods, kept, _questions_of_images(batch)))
            measured.questions += batch.questions
            bar.update(len(batch.questions))
    return measured


def _measures(batch: FeatureBatch, coverage: metrics.Coverage | None) -> list[dict[str, Measure]]:
    """Collect, for each image, the metrics that can be computed."""
    arrays = batch.tokens.arrays
    images = range(len(batch.tokens.image_ids))
    measures: list[dict[str, Measure]] = [{} for _ in images]
    cosine = cosine_similarity(arrays[RAW]).cpu() if RAW in arrays else None
    for image in images:
        if coverage is not None:
            measures[image] |= {"nearest_kept": coverage.nearest, "cells_covered": coverage.cells}
        if cosine is not None:
            measures[image]["duplicates"] = partial(metrics.duplicates, cosine[image])
        if AREA in arrays and arrays[AREA].shape[1] == batch.tokens.patches:
            measures[image]["padding"] = partial(metrics.padding, arrays[AREA][image].cpu())
    return measures


def _questions_of_images(batch: FeatureBatch) -> list[list[int]]:
    """List, for each image of a batch, the indices of its questions."""
    of_image: list[list[int]] = [[] for _ in batch.tokens.image_ids]
    for question, image in enumerate(batch.of_question.tolist()):
        of_image[image].append(question)
    return of_image


def _measure_cell(
    values: MetricValues, cell: Cell, kept: Bool[Tensor, "question patch"], batch: FeatureBatch,
    measures: Sequence[Mapping[str, Measure]], truth: Truth,
) -> None:  # fmt: skip
    """Add the values of one cell on one batch."""
    reads = reads_question(cell.pruner)
    for of_image, questions in zip(measures, _questions_of_images(batch), strict=True):
        distinct = kept[questions if reads else questions[:1]]
        for name, compute in of_image.items():
            values[name].append(float(np.mean([compute(patches) for patches in distinct])))
        if reads:
            texts = [batch.questions[question].question for question in questions]
            values["question_sensitivity"].append(metrics.question_sensitivity(distinct, texts))
    for question, patches in zip(batch.questions, kept, strict=True):
        values[PER_QUESTION].append(metrics.recall(truth.get(question.question_id), patches))


def _jaccard(
    methods: Sequence[Sequence[Cell]],
    kept: Mapping[str, Bool[Tensor, "question patch"]],
    questions: Sequence[Sequence[int]],
) -> Float[Tensor, "image method method"]:
    """Average Jaccard indices over each image's questions and over seeds.

    The seeds of two randomised methods are taken in pairs. The index of a method and itself is 1.
    """
    rounds = max(len(seeds) for seeds in methods)
    drawn = (torch.stack([kept[seeds[number % len(seeds)].name] for seeds in methods]) for number in range(rounds))
    alike = torch.stack([metrics.jaccard(every, every) for every in drawn]).mean(0)
    return torch.stack([alike[list(of_image)].mean(0) for of_image in questions])
