"""Measure what the configured methods keep, and how alike their choices are: `analyse`, from the store alone.

<run_dir>/selection/, or selection-sweep/ for the methods of a sweep
  selection.json   all numbers, their definitions, what was left out, the settings and the fingerprints
  metrics.csv      a line per method, budget and metric
  jaccard.csv      a line per budget and pair of methods
  table.md         both for people
  metrics.png      the metrics of all methods and budgets, side by side
  jaccard-<keep>.png   the heat map of a budget; methods stand in the same order in all of them
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configs.experiment import Experiment
from configs.files import portable
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from stage2_prune.analysis import plot as selection_plot
from stage2_prune.analysis import report as selection_report
from stage2_prune.analysis.estimates import jaccard_matrices, metric_rows
from stage2_prune.analysis.kept_sets import SelectingMethods, is_grid, open_selection, reads_question
from stage2_prune.analysis.measure import AREA, PER_QUESTION, RAW, Measured, measure
from stage2_prune.analysis.metrics import METRICS
from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import DamagedRun, Infeasible
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet, configured_pruners, require_budgets
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.session.choose import choose
from stage2_prune.session.features import Features
from stage2_prune.session.identity import earlier_digest, of_questions, questions_as_now, require_same
from stage2_prune.session.sealed import read_object, write_object
from stage2_prune.sweep.grid import wanted
from store.questions.question import Question
from store.reading.absent import how_to_add

SCHEMA = 1
NO_GRID = "the tokens are no patches in a grid: the CLS row is one of them, or a model's own code made them"


def run(
    experiment: Experiment, sweep: bool = False, limit: int | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Measure what is kept of the images of `eval.split`; write the folder of the analysis, return its `selection.json`.

    Args:
        experiment: the config.
        sweep: whether to take the methods of a `sweep`, whatever their order and `match`, in place of those of `prune`.
        limit: the largest number of questions; None for the whole split.
        overwrite: whether to replace an analysis of other settings.
    """
    methods = _swept(experiment) if sweep else configured_pruners(experiment)
    require_budgets(experiment, methods)
    questions = choose(experiment, experiment.eval.split, limit)
    selection = open_selection(experiment, methods, also=(RAW, AREA))
    features = selection.session.features
    asked, excluded = features.answerable(questions)
    cells, unmet, left_out = _cells(selection, asked[0])
    folder = folder_of(experiment, sweep)
    settings = _settings(selection, cells, asked, folder)
    if not overwrite:
        _refuse_other(folder, settings, asked)
    truth, unknown = find_truth(experiment, asked, features.grid) if is_grid(features) else ({}, NO_GRID)
    measured = measure(selection, cells, asked, truth)
    analysis = {
        "schema": SCHEMA,
        "split": experiment.eval.split,
        "n_questions": len(asked),
        "n_images": len({question.image for question in asked}),
        "patches": features.patches,
        "grid": list(features.grid),
        "excluded": [asdict(question) for question in excluded],
        "infeasible": [asdict(budget) for budget in unmet],
        "left_out": [asdict(method) for method in left_out],
        "metrics": {metric.name: metric.described for metric in METRICS},
        "not_measured": _not_measured(features, cells, measured, unknown),
        "results": metric_rows(experiment.eval, cells, measured),
        "jaccard": jaccard_matrices(experiment.eval, cells, measured, features.patches),
        "settings": settings,
        "config": portable.saved(experiment, folder),
        "fingerprints": features.fingerprints(features.needs),
    }
    return _write(experiment, folder, analysis)


def folder_of(experiment: Experiment, sweep: bool) -> Path:
    """Return the folder of an analysis; an analysis of a sweep's methods has its own, so that neither replaces the other."""
    return experiment.run_dir / ("selection-sweep" if sweep else "selection")


def _swept(experiment: Experiment) -> dict[str, Pruner]:
    """List the pruners that a sweep would take, by label.

    The order of tokens and the meaning of a budget inside the language model are not varied: they change no selection.
    """
    once = experiment.sweep.model_copy(update={"order": ("default",), "matches": ("mean-tokens",)})
    return {variant.label: variant.pruner for variant in wanted(experiment.model_copy(update={"sweep": once}))}


def _cells(selection: SelectingMethods, question: Question) -> tuple[list[Cell], list[Unmet], list[Unavailable]]:
    """List the cells that keep something, the budgets that cannot be met, and the methods that are left out.

    Raises:
        Infeasible: (exit 2) if no cell keeps something.
    """
    cells, unmet = selection.cells(question)
    keep_nothing = [Unavailable(cell.label, "keeps nothing") for cell in cells if cell.keep == 0]
    cells = [cell for cell in cells if cell.keep != 0]
    if not cells:
        raise Infeasible("expected a method that keeps something, there is none: check prune.methods and prune.budgets")
    return cells, unmet, [*selection.left_out, *keep_nothing]


def _settings(
    selection: SelectingMethods, cells: Sequence[Cell], asked: Sequence[Question], folder: Path
) -> dict[str, Any]:
    """Gather all settings that the numbers depend on, as JSON that will lie in `folder`."""
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


def _refuse_other(folder: Path, settings: Mapping[str, Any], asked: Sequence[Question]) -> None:
    """Raise OtherRun (exit 2), naming the settings that differ, if the folder holds an analysis of other settings."""
    path = folder / "selection.json"
    remedy = "delete it and run analyse again, which measures everything anew"
    recorded = read_object(path, remedy)
    if recorded is None:
        return
    old_settings = recorded.get("settings")
    if not isinstance(old_settings, dict):
        raise DamagedRun(f"{path} is damaged (it lacks its settings): {remedy}")
    old_settings["questions"] = questions_as_now(
        old_settings.get("questions"), settings["questions"], earlier_digest(asked), recorded.get("n_questions")
    )
    require_same(
        f"{path} was made with other settings",
        old_settings,
        settings,
        remedy="run again with --overwrite to replace it, or with another --run-dir to keep it",
    )


def _not_measured(features: Features, cells: Sequence[Cell], measured: Measured, unknown: str | None) -> dict[str, str]:
    """Name the metrics without a value, each with the reason; `unknown` is the reason that nothing shows the objects."""
    reasons: dict[str, str] = {}
    arrays = features.store.arrays
    if not is_grid(features):
        reasons |= dict.fromkeys(("nearest_kept", "cells_covered", "padding"), NO_GRID)
    for name, array in (("duplicates", RAW), ("padding", AREA)):
        if array not in arrays:
            reasons[name] = f"the store lacks {array}: {how_to_add([array], features.store.plan)}"
    if unknown is not None:
        reasons[PER_QUESTION] = unknown
    readers = [cell.name for cell in cells if reads_question(cell.pruner)]
    if not readers:
        reasons["question_sensitivity"] = "no method here reads the question: all keep the same whatever is asked"
    elif not any(np.isfinite(measured.cells[name]["question_sensitivity"]).any() for name in readers):
        reasons["question_sensitivity"] = "no image has two different questions"
    return reasons


def _write(experiment: Experiment, folder: Path, analysis: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files of the folder, and return the content of `selection.json`."""
    written = write_object(folder / "selection.json", analysis)
    write_atomically(folder / "metrics.csv", selection_report.metrics_csv(analysis))
    write_atomically(folder / "jaccard.csv", selection_report.jaccard_csv(analysis))
    write_atomically(folder / "table.md", selection_report.table(analysis))
    selection_plot.metrics(analysis, folder / "metrics.png")
    for matrix in analysis["jaccard"]:
        selection_plot.jaccard(analysis, matrix, folder / f"jaccard-{matrix['keep']}.png")
    save_resolved(experiment, folder)
    return written
