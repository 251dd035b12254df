"""What the configured methods keep, and how alike it is: `analyse`, from the store alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from configs.experiment import Experiment
from configs.files import portable
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from stage2_prune.analysis import plot as selection_plot
from stage2_prune.analysis import report as selection_report
from stage2_prune.analysis.clustering import leaf_order
from stage2_prune.analysis.kept_sets import Selection, is_grid, open_selection, reads_question
from stage2_prune.analysis.measure import AREA, PER_QUESTION, RAW, Measured, compared, measure
from stage2_prune.analysis.metrics import METRICS, jaccard_by_chance
from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import DamagedRun, Infeasible, OtherRun
from stage2_prune.evaluation.cells import Cell, Unavailable, configured_pruners
from stage2_prune.evaluation.intervals import interval, intervals
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.session.choose import choose
from stage2_prune.session.features import Features
from stage2_prune.session.identity import differences, of_questions
from stage2_prune.session.sealed import read_object, write_object
from stage2_prune.sweep.grid import wanted
from store.questions.question import Question
from store.reading.absent import how_to_add

SCHEMA = 1
NO_GRID = "the tokens are no patches in a grid: the CLS row is one of them, or a model's own code made them"


def run(
    experiment: Experiment, sweep: bool = False, limit: int | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Measure what is kept of the images of `eval.split`; returns what `selection/selection.json` holds.

    The methods are those of `prune`, or those that a `sweep` would take, whatever their order and `match`.

    <run_dir>/selection/
      selection.json   all numbers, their definitions, what was left out, the settings and the fingerprints
      metrics.csv      a line per method, budget and metric
      jaccard.csv      a line per budget and pair of methods
      table.md         both for people
      metrics.png      the metrics of all methods and budgets, side by side
      jaccard-<keep>.png   the heat map of a budget; methods stand in the same order in all of them
    """
    questions = choose(experiment, experiment.eval.split, limit)
    methods = _swept(experiment) if sweep else configured_pruners(experiment)
    selection = open_selection(experiment, methods, also=(RAW, AREA))
    features = selection.session.features
    asked, excluded = features.answerable(questions)
    cells, unmet = selection.cells(asked[0])
    left_out = [*selection.left_out, *(Unavailable(cell.label, "keeps nothing") for cell in cells if cell.keep == 0)]
    cells = [cell for cell in cells if cell.keep != 0]
    if not cells:
        raise Infeasible("expected a method that keeps something, there is none: check prune.methods and prune.budgets")
    folder = experiment.run_dir / "selection"
    settings = _settings(selection, cells, asked, folder)
    _refuse_other(folder, settings, asked, overwrite)
    truth, unknown = find_truth(experiment, asked, features.grid) if is_grid(features) else ({}, NO_GRID)
    measured = measure(selection, cells, asked, truth)
    found = {
        "schema": SCHEMA,
        "split": experiment.eval.split,
        "n_questions": len(asked),
        "n_images": len({question.image for question in asked}),
        "patches": features.patches,
        "grid": list(features.grid),
        "excluded": [asdict(one) for one in excluded],
        "infeasible": [asdict(one) for one in unmet],
        "left_out": [asdict(one) for one in left_out],
        "metrics": {one.name: {"unit": one.unit, "title": one.title, "definition": one.definition} for one in METRICS},
        "not_measured": _not_measured(features, cells, measured, unknown),
        "results": _results(experiment, cells, measured),
        "jaccard": _jaccard(experiment, cells, measured, features.patches),
        "settings": settings,
        "config": portable.saved(experiment, folder),
        "fingerprints": features.fingerprints(features.needs),
    }
    written = _write(folder, found)
    save_resolved(experiment, folder)
    return written


def _swept(experiment: Experiment) -> dict[str, Pruner]:
    """By label; the order of tokens and the meaning of a budget inside the language model change no selection."""
    once = experiment.sweep.model_copy(update={"order": ("default",), "matches": ("mean-tokens",)})
    return {one.label: one.pruner for one in wanted(experiment.model_copy(update={"sweep": once}))}


def _settings(selection: Selection, cells: Sequence[Cell], asked: Sequence[Question], folder: Path) -> dict[str, Any]:
    """All that the numbers depend on, as JSON that will lie in `folder`."""
    section = selection.session.experiment.eval
    settings = {
        "pruners": {cell.name: cell.pruner.parameters() for cell in cells},
        "weights": dict(selection.weights),
        "questions": of_questions(asked),
        "post_prompt": selection.session.experiment.data.post_prompt,
        "store": portable.location(selection.session.features.store.path, folder),
        "bootstrap": section.bootstrap,
        "seed": section.seed,
    }
    return json.loads(json.dumps(settings))


def _refuse_other(folder: Path, settings: Mapping[str, Any], asked: Sequence[Question], overwrite: bool) -> None:
    """Raise OtherRun (exit 2), naming what differs, if other settings made what lies there."""
    path = folder / "selection.json"
    remedy = "delete it and run analyse again, which measures everything anew"
    there = None if overwrite else read_object(path, remedy)
    if there is None:
        return
    if not isinstance(before := there.get("settings"), dict):
        raise DamagedRun(f"{path} is damaged (it lacks its settings): {remedy}")
    if isinstance(
        listed := before.get("questions"), str
    ):  # an earlier version named the questions by their digest alone
        known = listed == _digest_of_earlier_versions(asked)
        before["questions"] = settings["questions"] if known else {"questions": there.get("n_questions")}
    if differing := differences(before, settings):
        raise OtherRun(
            f"{path} was made with other settings ({'; '.join(differing)}): run again with --overwrite to replace it, or with "
            "another --run-dir to keep it"
        )


def _digest_of_earlier_versions(asked: Sequence[Question]) -> str:
    return sha256(json.dumps([question.model_dump() for question in asked]).encode()).hexdigest()


def _not_measured(features: Features, cells: Sequence[Cell], measured: Measured, unknown: str | None) -> dict[str, str]:
    """Metrics without a value, with the reason."""
    found: dict[str, str] = {}
    arrays = features.store.arrays
    if not is_grid(features):
        found |= dict.fromkeys(("nearest_kept", "cells_covered", "padding"), NO_GRID)
    for name, array in (("duplicates", RAW), ("padding", AREA)):
        if array not in arrays:
            found[name] = f"the store lacks {array}: {how_to_add([array], features.store.plan)}"
    if unknown is not None:
        found[PER_QUESTION] = unknown
    readers = [cell.name for cell in cells if reads_question(cell.pruner)]
    if not readers:
        found["question_sensitivity"] = "no method here reads the question: all keep the same whatever is asked"
    elif not any(np.isfinite(measured.cells[name]["question_sensitivity"]).any() for name in readers):
        found["question_sensitivity"] = "no image has two different questions"
    return found


def _results(experiment: Experiment, cells: Sequence[Cell], measured: Measured) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for _, group in groupby(cells, key=lambda cell: (cell.label, cell.keep)):
        seeds = list(group)
        values = {
            metric.name: _estimate(
                experiment, metric.name, [measured.cells[cell.name][metric.name] for cell in seeds], measured
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
    experiment: Experiment, metric: str, seeds: Sequence[Sequence[float]], measured: Measured
) -> dict[str, Any] | None:
    """Mean over images, or over questions, with its interval over images; None where there is no value."""
    values = np.array(seeds, dtype=float).mean(0)
    there = np.isfinite(values)
    if not there.any():
        return None
    images = [question.image for question in measured.questions]
    of_value = images if metric == PER_QUESTION else list(dict.fromkeys(images))
    clusters = np.unique(np.array(of_value)[there], return_inverse=True)[1]
    low, high = interval(values[there], clusters, experiment.eval.bootstrap, experiment.eval.seed)
    return {
        "mean": float(values[there].mean()),
        "ci95": [low, high],
        "n_images": int(clusters.max()) + 1,
        "n": int(there.sum()),
    }


def _jaccard(experiment: Experiment, cells: Sequence[Cell], measured: Measured, patches: int) -> list[dict[str, Any]]:
    """A matrix per budget; methods in the order of their likeness over all budgets."""
    methods = {keep: [seeds[0].label for seeds in groups] for keep, groups in compared(cells).items()}
    every = {keep: torch.cat(parts).numpy() for keep, parts in measured.jaccard.items()}
    labels = list(dict.fromkeys(label for named in methods.values() for label in named))
    total, times = np.zeros((len(labels),) * 2), np.zeros((len(labels),) * 2)
    for keep, named in methods.items():
        at = np.ix_([labels.index(one) for one in named], [labels.index(one) for one in named])
        total[at] += every[keep].mean(0)
        times[at] += 1
    order = [labels[place] for place in leaf_order(total / np.maximum(times, 1))]
    return [_matrix(experiment, keep, patches, every[keep], named, order) for keep, named in methods.items()]


def _matrix(
    experiment: Experiment, keep: int, patches: int, alike: Float[np.ndarray, "image method method"],
    named: Sequence[str], order: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    shown = [label for label in order if label in named]
    places = [named.index(label) for label in shown]
    ordered = alike[:, places][:, :, places].astype(float)
    flat = ordered.reshape(len(ordered), -1)
    low, high = intervals(flat, experiment.eval.bootstrap, experiment.eval.seed)
    return {
        "keep": keep,
        "by_chance": jaccard_by_chance(patches, keep),
        "methods": shown,
        "mean": ordered.mean(0).tolist(),
        "low": low.reshape(ordered.shape[1:]).tolist(),
        "high": high.reshape(ordered.shape[1:]).tolist(),
    }


def _write(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files; returns what `selection.json` holds."""
    written = write_object(folder / "selection.json", found)
    write_atomically(folder / "metrics.csv", selection_report.metrics_csv(found))
    write_atomically(folder / "jaccard.csv", selection_report.jaccard_csv(found))
    write_atomically(folder / "table.md", selection_report.table(found))
    selection_plot.metrics(found, folder / "metrics.png")
    for matrix in found["jaccard"]:
        selection_plot.jaccard(found, matrix, folder / f"jaccard-{matrix['keep']}.png")
    return written
