"""Predictions -> `summary.json`: one row per (pruner, keep, positions), averaged over seeds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import portable
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet
from stage2_prune.evaluation.intervals import accuracy_interval, by_kind
from stage2_prune.evaluation.shortcuts import shortcut
from stage2_prune.language import price as budget
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.session.ask import Prediction
from stage2_prune.session.features import Excluded
from stage2_prune.session.session import Session
from store.questions.answers import NORMALISATION, normalise
from store.questions.question import Question

UNPRUNED = "keep_all"


@dataclass(frozen=True)
class Evaluated:
    """One finished cell: its predictions in question order, and its record in `cells.json`."""

    cell: Cell
    predictions: Sequence[Prediction]
    record: Mapping[str, Any]


def summarise(
    session: Session,
    evaluated: Sequence[Evaluated],
    asked: Sequence[Question],
    excluded: Sequence[Excluded],
    unmet: Sequence[Unmet] = (),
    unavailable: Sequence[Unavailable] = (),
    *,
    folder: Path,
) -> dict[str, Any]:
    """Gather all that a program may want to read of an evaluation, as JSON that will lie in `folder`."""
    experiment = session.experiment
    text = _text_tokens(session, asked)
    groups = groupby(evaluated, key=lambda one: (one.cell.label, one.cell.keep, one.cell.positions))
    return {
        "schema": 1,
        "split": experiment.eval.split,
        "n_questions": len(asked),
        "n_images": len({question.image for question in asked}),
        "excluded": [asdict(one) for one in excluded],
        "infeasible": [asdict(one) for one in unmet],
        "unavailable": [asdict(one) for one in unavailable],
        "match": experiment.prune.match,
        "primary": "generate",
        "normalisation": NORMALISATION,
        "exact": session.exact,
        "template": session.language.template,
        "flops_conventions": {name: convention.description for name, convention in budget.CONVENTIONS.items()},
        "results": [_row(session, list(group), asked, text, _unpruned(evaluated)) for _, group in groups],
        "config": portable.saved(experiment, folder),
        "fingerprints": session.fingerprints,
    }


def _row(
    session: Session,
    group: Sequence[Evaluated],
    asked: Sequence[Question],
    text: Sequence[int],
    unpruned: Sequence[Prediction] | None,
) -> dict[str, Any]:
    cell = group[0].cell
    right = np.mean([[p.right for p in one.predictions] for one in group], axis=0)
    ranked = [[p.ranked_right for p in one.predictions if p.ranked_right is not None] for one in group]
    price = _price(session, group, text)
    section = session.experiment.eval
    same = _agreement(group, unpruned)
    trained = isinstance(cell.pruner, TrainedPruner)
    return {
        "pruner": cell.label,
        "keep": cell.keep,
        "positions": cell.positions,
        "seeds": [one.cell.seed for one in group if one.cell.seed is not None],
        "accuracy": float(right.mean()),
        "accuracy_ranked": float(np.mean(ranked)) if ranked[0] else None,
        "disagree": sum(_disagree(p) for one in group for p in one.predictions),
        "ci95": accuracy_interval(right, [question.image for question in asked], section.bootstrap, section.seed),
        "tokens_per_layer_mean": price.tokens_per_layer_mean,
        "n": len(asked),
        "n_ranked": len(ranked[0]),
        "by_kind": by_kind(right, [question.kind for question in asked]),
        "tokens_per_layer": list(price.tokens_per_layer),
        "drop_layers": list(cell.schedule.layers),
        "kv_bytes": price.kv_bytes,
        "flops": dict(price.flops),
        "flops_convention": section.flops,
        "weights": _weights(session, group[0]),
        "agreement": same,
        "shortcut": shortcut(cell.name, float(right.mean()), same) if trained else None,
        **_selector_times(group),
        "parameters": {k: v for k, v in cell.pruner.parameters().items() if k != "seed" or cell.seed is None},
    }


def _selector_times(group: Sequence[Evaluated]) -> dict[str, Any]:
    """Milliseconds per image of the method itself: the mean of its seeds, and the fastest and the slowest of their batches."""
    times = [t for one in group if (t := one.record["selector_ms_per_image"]) is not None]
    ranges = [ends for one in group if (ends := one.record.get("selector_ms_range")) is not None]
    return {
        "selector_ms_per_image": float(np.mean(times)) if times else None,
        "selector_ms_range": [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None,
    }


def _unpruned(evaluated: Sequence[Evaluated]) -> Sequence[Prediction] | None:
    """The model's own answers, where they were asked for too."""
    return next((one.predictions for one in evaluated if one.cell.label.partition("@")[0] == UNPRUNED), None)


def _agreement(group: Sequence[Evaluated], unpruned: Sequence[Prediction] | None) -> float | None:
    """Share of the answers that say what the unpruned model says, right or wrong."""
    if unpruned is None:
        return None
    pairs = [pair for one in group for pair in zip(one.predictions, unpruned, strict=True)]
    return float(np.mean([normalise(a.prediction) == normalise(b.prediction) for a, b in pairs]))


def _weights(session: Session, evaluated: Evaluated) -> dict[str, Any] | None:
    """The folder of a trained method's weights, relative to that of `summary.json`, and their digest."""
    pruner = evaluated.cell.pruner
    if not isinstance(pruner, TrainedPruner) or pruner.weights is None:
        return None
    folder = os.path.relpath(pruner.weights, session.experiment.run_dir / "eval")
    return {"folder": folder, "sha256": evaluated.record["identity"]["weights"]}


def _text_tokens(session: Session, asked: Sequence[Question]) -> list[int]:
    """Tokens of each question's prompt beside the visual ones."""
    said = [question.question + session.experiment.data.post_prompt for question in asked]
    return [len(prompt.before) + len(prompt.after) for prompt in map(session.language.prompt, said)]


def _price(session: Session, group: Sequence[Evaluated], text: Sequence[int]) -> budget.Price:
    """Of what the model was given, not of what was asked for: each prediction says how many tokens entered."""
    schedules = [_entered(one.cell.schedule, prediction) for one in group for prediction in one.predictions]
    return budget.price(budget.shape_of(session.language), zip(schedules, [*text] * len(group), strict=True))


def _entered(schedule: Schedule, prediction: Prediction) -> Schedule:
    count = prediction.visual_tokens
    return schedule if count in (None, schedule.entering) else replace(schedule, entering=count)


def _disagree(prediction: Prediction) -> bool:
    """Whether generation and ranking gave different answers; counted over all seeds."""
    return prediction.ranked is not None and normalise(prediction.prediction) != normalise(prediction.ranked)
