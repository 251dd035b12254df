"""Average the measurements of kept patches, with intervals over images, into the rows and matrices of an analysis."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from configs.experiment import EvalSection
from stage2_prune.analysis.clustering import leaf_order
from stage2_prune.analysis.measure import PER_QUESTION, Measured, compared
from stage2_prune.analysis.metrics import METRICS, jaccard_by_chance
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.intervals import interval, intervals


def metric_rows(section: EvalSection, cells: Sequence[Cell], measured: Measured) -> list[dict[str, Any]]:
    """Average the metrics of each method at each budget, over seeds and images."""
    rows: list[dict[str, Any]] = []
    for _, group in groupby(cells, key=lambda cell: (cell.label, cell.keep)):
        seeds = list(group)
        values = {
            metric.name: _estimate(
                section, metric.name, [measured.cells[cell.name][metric.name] for cell in seeds], measured
            )
            for metric in METRICS
        }
        cell = seeds[0]
        rows.append(
            {
                "pruner": cell.label,
                "keep": cell.keep,
                "tokens_mean": float(np.mean([measured.tokens[cell.name] for cell in seeds])),
                "seeds": [cell.seed for cell in seeds if cell.seed is not None],
                "metrics": values,
                "parameters": {k: v for k, v in cell.pruner.parameters().items() if k != "seed" or cell.seed is None},
            }
        )
    return rows


def _estimate(
    section: EvalSection, metric: str, seeds: Sequence[Sequence[float]], measured: Measured
) -> dict[str, Any] | None:
    """Average a metric over images, or over questions, with an interval over images; None if no value is known."""
    values = np.array(seeds, dtype=float).mean(0)
    known = np.isfinite(values)
    if not known.any():
        return None
    images = [question.image for question in measured.questions]
    of_value = images if metric == PER_QUESTION else list(dict.fromkeys(images))
    clusters = np.unique(np.array(of_value)[known], return_inverse=True)[1]
    low, high = interval(values[known], clusters, section.bootstrap, section.seed)
    return {
        "mean": float(values[known].mean()),
        "ci95": [low, high],
        "n_images": int(clusters.max()) + 1,
        "n": int(known.sum()),
    }


def jaccard_matrices(
    section: EvalSection, cells: Sequence[Cell], measured: Measured, patches: int
) -> list[dict[str, Any]]:
    """Average a Jaccard matrix for each budget; methods stand in the order of their likeness over all budgets."""
    methods = {keep: [seeds[0].label for seeds in groups] for keep, groups in compared(cells).items()}
    every = {keep: torch.cat(parts).numpy() for keep, parts in measured.jaccard.items()}
    labels = list(dict.fromkeys(label for named in methods.values() for label in named))
    total, times = np.zeros((len(labels),) * 2), np.zeros((len(labels),) * 2)
    for keep, named in methods.items():
        block = np.ix_([labels.index(label) for label in named], [labels.index(label) for label in named])
        total[block] += every[keep].mean(0)
        times[block] += 1
    order = [labels[index] for index in leaf_order(total / np.maximum(times, 1))]
    return [_matrix(section, keep, patches, every[keep], named, order) for keep, named in methods.items()]


def _matrix(
    section: EvalSection, keep: int, patches: int, alike: Float[np.ndarray, "image method method"],
    named: Sequence[str], order: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Average the Jaccard indices of one budget; `named` are the methods of the axes, `order` is the order to show."""
    shown = [label for label in order if label in named]
    indices = [named.index(label) for label in shown]
    ordered = alike[:, indices][:, :, indices].astype(float)
    flat = ordered.reshape(len(ordered), -1)
    low, high = intervals(flat, section.bootstrap, section.seed)
    return {
        "keep": keep,
        "by_chance": jaccard_by_chance(patches, keep),
        "methods": shown,
        "mean": ordered.mean(0).tolist(),
        "low": low.reshape(ordered.shape[1:]).tolist(),
        "high": high.reshape(ordered.shape[1:]).tolist(),
    }
