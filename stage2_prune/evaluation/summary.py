"""Summarise predictions as `summary.json`: one row per (pruner, keep, positions), averaged over seeds."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from configs.files import portable
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet, shares_prefix
from stage2_prune.evaluation.intervals import accuracy_interval, by_kind
from stage2_prune.evaluation.shortcuts import UNPRUNED, shortcut
from stage2_prune.language import price as prices
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.session.ask import Prediction
from stage2_prune.session.features import Excluded
from stage2_prune.session.session import Session
from store.questions.answers import NORMALISATION, normalise
from store.questions.question import Question


@dataclass(frozen=True)
class Evaluated:
    """A finished cell, with its predictions in question order and its record in `cells.json`."""

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
    """Gather everything that a program may want to read about an evaluation, as JSON.

    Args:
        session: the opened store and model.
        evaluated: the finished cells; the seeds of one method, budget and positions stand side by side.
        asked: the questions.
        excluded: the questions that were left out.
        unmet: the budgets that methods cannot meet.
        unavailable: the methods whose needs cannot be met.
        folder: the folder that the JSON will lie in; paths are written relative to this folder.
    """
    experiment = session.experiment
    text = _text_tokens(session, asked)
    groups = groupby(evaluated, key=lambda done: (done.cell.label, done.cell.keep, done.cell.positions))
    return {
        "schema": 1,
        "split": experiment.eval.split,
        "n_questions": len(asked),
        "n_images": len({question.image for question in asked}),
        "excluded": [asdict(question) for question in excluded],
        "infeasible": [asdict(budget) for budget in unmet],
        "unavailable": [asdict(method) for method in unavailable],
        "match": experiment.prune.match,
        "primary": "generate",
        "normalisation": NORMALISATION,
        "exact": session.exact and not experiment.eval.share_prefix,
        "template": session.language.template,
        "flops_conventions": {name: convention.description for name, convention in prices.CONVENTIONS.items()},
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
    """Summarise the seeds of one method at one budget and one kind of positions."""
    cell = group[0].cell
    right = np.mean([[p.right for p in seed.predictions] for seed in group], axis=0)
    ranked = [[p.ranked_right for p in seed.predictions if p.ranked_right is not None] for seed in group]
    price = _price(session, group, text)
    section = session.experiment.eval
    agreement = _agreement(group, unpruned)
    trained = isinstance(cell.pruner, TrainedPruner)
    return {
        "pruner": cell.label,
        "keep": cell.keep,
        "positions": cell.positions,
        "seeds": [seed.cell.seed for seed in group if seed.cell.seed is not None],
        "accuracy": float(right.mean()),
        "accuracy_ranked": float(np.mean(ranked)) if ranked[0] else None,
        "disagree": sum(_disagree(p) for seed in group for p in seed.predictions),
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
        **({"exact": session.exact and not shares_prefix(cell, section)} if section.share_prefix else {}),
        "weights": _weights(session, group[0]),
        "agreement": agreement,
        "shortcut": shortcut(cell.name, float(right.mean()), agreement) if trained else None,
        **_selector_times(group),
        "parameters": {k: v for k, v in cell.pruner.parameters().items() if k != "seed" or cell.seed is None},
    }


def _selector_times(group: Sequence[Evaluated]) -> dict[str, Any]:
    """Give the milliseconds per image of the method itself: the mean over seeds, the fastest and the slowest batch."""
    times = [time for seed in group if (time := seed.record["selector_ms_per_image"]) is not None]
    ranges = [ends for seed in group if (ends := seed.record.get("selector_ms_range")) is not None]
    return {
        "selector_ms_per_image": float(np.mean(times)) if times else None,
        "selector_ms_range": [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None,
    }


def _unpruned(evaluated: Sequence[Evaluated]) -> Sequence[Prediction] | None:
    """Return the unpruned model's answers; None if this evaluation did not ask for them."""
    return next((done.predictions for done in evaluated if done.cell.label.partition("@")[0] == UNPRUNED), None)


def _agreement(group: Sequence[Evaluated], unpruned: Sequence[Prediction] | None) -> float | None:
    """Compute the share of answers that equal the unpruned model's, right or wrong."""
    if unpruned is None:
        return None
    pairs = [pair for seed in group for pair in zip(seed.predictions, unpruned, strict=True)]
    return float(np.mean([normalise(a.prediction) == normalise(b.prediction) for a, b in pairs]))


def _weights(session: Session, evaluated: Evaluated) -> dict[str, Any] | None:
    """Name the folder of a trained method's weights, relative to the folder of `summary.json`, and the weights' digest."""
    pruner = evaluated.cell.pruner
    if not isinstance(pruner, TrainedPruner) or pruner.weights is None:
        return None
    folder = os.path.relpath(pruner.weights, session.experiment.run_dir / "eval")
    return {"folder": folder, "sha256": evaluated.record["identity"]["weights"]}


def _text_tokens(session: Session, asked: Sequence[Question]) -> list[int]:
    """Count the text tokens in each question's prompt."""
    wordings = [question.question + session.experiment.data.post_prompt for question in asked]
    return [len(prompt.before) + len(prompt.after) for prompt in map(session.language.prompt, wordings)]


def _price(session: Session, group: Sequence[Evaluated], text: Sequence[int]) -> prices.Price:
    """Price what the model was given, not what was asked for: each prediction records how many tokens entered."""
    schedules = [_entered(seed.cell.schedule, prediction) for seed in group for prediction in seed.predictions]
    return prices.price(prices.shape_of(session.language), zip(schedules, [*text] * len(group), strict=True))


def _entered(schedule: Schedule, prediction: Prediction) -> Schedule:
    """Correct a cell's schedule to the number of visual tokens that entered for one prediction."""
    count = prediction.visual_tokens
    return schedule if count in (None, schedule.entering) else replace(schedule, entering=count)


def _disagree(prediction: Prediction) -> bool:
    """Tell whether generation and ranking gave different answers."""
    return prediction.ranked is not None and normalise(prediction.prediction) != normalise(prediction.ranked)
