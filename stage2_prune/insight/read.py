"""Read a trained pruner (`read`): what it scores and keeps, beside another method, and where its answers gain and lose.

<run_dir>/read/
  maps.png          some images with the score map and the kept patches of both methods
  differences.png   where in images one of both keeps what the other drops
  reading.json      all numbers
  table.md          the numbers for people

All of it is made from the store, the weights and saved predictions; a later command makes it anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import plugin
from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import build_pruner, method_of
from stage2_prune import pruners
from stage2_prune.analysis import sheet
from stage2_prune.analysis.kept_sets import SelectingMethods, is_grid, open_selection
from stage2_prune.analysis.truth import find_truth
from stage2_prune.errors import CannotShow, PrunerMisused, ResultsMissing
from stage2_prune.evaluation.cells import Cell, configured_pruners
from stage2_prune.insight import answers, differences, maps
from stage2_prune.insight.report import table
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.choose import choose

COLUMNS = 5
"""Pictures side by side: the image, and two of each method."""
DPI = 150


def run(experiment: Experiment, keep: int, against: str, images: int, limit: int | None = None) -> dict[str, Any]:
    """Read the trained method that `train.pruner` names; write the folder and return the content of `reading.json`.

    Args:
        experiment: the config.
        keep: the budget, in visual tokens per image.
        against: the method to compare it with, by its label in the config or by name.
        images: the number of images that are drawn.
        limit: the largest number of questions; None for all of `eval.split`.

    Raises:
        PrunerMisused: (exit 2) if `train.pruner` names no trained method, or a method cannot select from the store.
        NotTrained: (exit 5) if there are no weights.
    """
    ours = experiment.train.pruner
    one_budget = experiment.prune.model_copy(update={"budgets": (keep,), "seeds": 1})
    selection = open_selection(experiment.model_copy(update={"prune": one_budget}), _methods(experiment, ours, against))
    features = selection.session.features
    if not is_grid(features):
        raise CannotShow("expected patches in a grid, these tokens are none: score maps have no place for them")
    questions, _ = features.answerable(choose(experiment, experiment.eval.split, limit))
    cells = _cells(selection, ours, against, questions[0])
    truth, unknown = find_truth(experiment, questions, features.grid)
    kept = differences.kept_both(selection, *cells, questions)
    folder = folder_of(experiment)
    first = {question.image: question for question in reversed(questions)}
    drawn = [question for question in questions if first[question.image] is question][:images]
    sheet.draw(maps.bands(selection, cells, drawn, truth), COLUMNS, folder / "maps.png", DPI)
    differences.draw(kept, (ours, against), features.grid, folder / "differences.png")
    reading = {
        "schema": 1,
        "method": ours,
        "against": against,
        "keep": keep,
        "split": experiment.eval.split,
        "n_questions": len(questions),
        "n_images": len({question.image for question in questions}),
        "region_unknown": unknown,
        "counts": differences.counts(kept, truth, experiment.eval),
        **_from_answers(experiment, ours, against),
    }
    write_atomically(folder / "reading.json", json.dumps(reading, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.md", table(reading))
    return reading


def folder_of(experiment: Experiment) -> Path:
    """Return the folder that `read` writes to."""
    return experiment.run_dir / "read"


def _methods(experiment: Experiment, ours: str, against: str) -> dict[str, Pruner]:
    configured = configured_pruners(experiment)
    pruner = configured.get(ours)
    if not isinstance(pruner, TrainedPruner):
        raise PrunerMisused(
            f"train.pruner: expected a trained method of prune.methods to read, {ours!r} is none: name one with --train.pruner"
        )
    other = configured.get(against) or build_pruner(method_of(against, {}), plugin.find_all(pruners, Pruner))
    return {ours: pruner, against: other}


def _cells(selection: SelectingMethods, ours: str, against: str, question: Any) -> tuple[Cell, Cell]:
    """Return the cells of both methods; raise PrunerMisused (exit 2) with the reason that one cannot be read."""
    cells, unmet = selection.cells(question)
    by_label = {cell.label: cell for cell in cells}
    reasons = {lacking.pruner: lacking.reason for lacking in (*selection.left_out, *unmet)}
    for label in (ours, against):
        if label not in by_label:
            raise PrunerMisused(f"expected a method that selects patches to read, {label} {reasons[label]}")
    return by_label[ours], by_label[against]


def _from_answers(experiment: Experiment, ours: str, against: str) -> Mapping[str, Any]:
    """Read the predictions of the run; without any, say why nothing is known of the answers."""
    try:
        results = answers.results_of(experiment.run_dir)
    except ResultsMissing as missing:
        return {"by_kind": [], "transfer": [], "no_answers": str(missing)}
    kinds = answers.by_kind(results, ours, against, experiment.eval)
    return {"by_kind": kinds, "transfer": answers.transfer(experiment, results), "no_answers": None}
