"""Predictions -> `summary.json`: one row per (pruner, keep, positions), averaged over seeds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Int

from stage2_prune import budget
from stage2_prune.ask import Prediction
from stage2_prune.cells import Cell, Unavailable, Unmet
from stage2_prune.features import Excluded
from stage2_prune.intervals import by_kind, interval
from stage2_prune.pruner import TrainedPruner
from stage2_prune.schedule_budget import Schedule
from stage2_prune.session import Session
from store.answers import NORMALISATION, normalise
from store.questions import Question


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
) -> dict[str, Any]:
    """All that a program may want to read of an evaluation, as JSON."""
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
        "results": [_row(session, list(group), asked, text) for _, group in groups],
        "config": experiment.model_dump(mode="json"),
        "fingerprints": session.fingerprints,
    }


def _row(
    session: Session, group: Sequence[Evaluated], asked: Sequence[Question], text: Sequence[int]
) -> dict[str, Any]:
    cell = group[0].cell
    right = np.mean([[p.right for p in one.predictions] for one in group], axis=0)
    ranked = [[p.ranked_right for p in one.predictions if p.ranked_right is not None] for one in group]
    price = _price(session, group, text)
    section = session.experiment.eval
    timed = [t for one in group if (t := one.record["selector_ms_per_image"]) is not None]
    return {
        "pruner": cell.label,
        "keep": cell.keep,
        "positions": cell.positions,
        "seeds": [one.cell.seed for one in group if one.cell.seed is not None],
        "accuracy": float(right.mean()),
        "accuracy_ranked": float(np.mean(ranked)) if ranked[0] else None,
        "disagree": sum(_disagree(p) for one in group for p in one.predictions),
        "ci95": list(interval(right, _clusters(asked), section.bootstrap, section.seed)),
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
        "selector_ms_per_image": float(np.mean(timed)) if timed else None,
        "parameters": {k: v for k, v in cell.pruner.parameters().items() if k != "seed" or cell.seed is None},
    }


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


def _clusters(asked: Sequence[Question]) -> Int[np.ndarray, " question"]:
    number: dict[str, int] = {}
    return np.array([number.setdefault(question.image, len(number)) for question in asked])
