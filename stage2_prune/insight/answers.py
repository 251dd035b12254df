"""Read from saved predictions where a trained pruner gains and loses, and how it does beyond what it was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.budgets import ascending
from configs.experiment import EvalSection, Experiment
from stage2_prune.compare.results import MethodResult, load
from stage2_prune.compare.rows import both_answered, right_answers
from stage2_prune.evaluation.cells import configured_pruners
from stage2_prune.evaluation.intervals import accuracy_interval
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session import weights

ALL = "all"
"""Stands for all kinds of question."""


def results_of(run_dir: Path) -> list[MethodResult]:
    """Load the results of a run's evaluation, the largest budget first; raise ResultsMissing (exit 5) if there are none."""
    results = load([run_dir], ())[0]
    return sorted(results, key=lambda result: ascending(result.keep or 0), reverse=True)


def by_kind(results: Sequence[MethodResult], ours: str, other: str, section: EvalSection) -> list[dict[str, Any]]:
    """Compare two methods, by label, for each budget and kind of question that both answered: paired, with intervals over images.

    Args:
        results: the results of an evaluation.
        ours: the label of the one method.
        other: the label of the other, which is subtracted.
        section: the number of resamples and their seed.
    """
    rows: list[dict[str, Any]] = []
    others = {result.keep: result for result in results if result.label == other}
    for result in results:
        if result.label != ours or (beside := others.get(result.keep)) is None:
            continue
        names = both_answered(result, beside)
        asked = [result.seeds[0][name] for name in names]
        right = [right_answers(of, names).mean(0) for of in (result, beside)]
        for kind in [ALL, *sorted({question.kind for question in asked if question.kind})]:
            chosen = np.array([kind in (ALL, question.kind) for question in asked])
            gain = (right[0] - right[1])[chosen]
            images = [question.image for question, is_chosen in zip(asked, chosen, strict=True) if is_chosen]
            rows.append(
                {
                    "kind": kind,
                    "keep": result.keep,
                    "accuracy": float(right[0][chosen].mean()),
                    "other": float(right[1][chosen].mean()),
                    "gain": float(gain.mean()),
                    "ci95": accuracy_interval(gain, images, section.bootstrap, section.seed),
                    "n": len(gain),
                }
            )
    return rows


def transfer(experiment: Experiment, results: Sequence[MethodResult]) -> list[dict[str, Any]]:
    """Show each trained method of a config on budgets and kinds of question that it was trained on, and on others.

    What a method was trained on is read from the record beside its weights. Results of other weights than those that lie
    there now are left out.
    """
    rows: list[dict[str, Any]] = []
    for label, pruner in configured_pruners(experiment).items():
        if not isinstance(pruner, TrainedPruner):
            continue
        folder = weights.folder(experiment.run_dir, label, pruner)
        record = weights.read_record(folder, named=pruner.weights is not None)
        trained = {} if record is None else record["training"].get("identity", {})
        for result in results:
            weighs = result.identities[0].get("weights")
            if record is not None and result.label == label and weighs == record["sha256"]:
                rows.append(_transferred(label, result, trained))
    return rows


def _transferred(label: str, result: MethodResult, trained: Mapping[str, Any]) -> dict[str, Any]:
    """Split a result by whether the method was trained on a question's kind; say whether it was trained at the budget."""
    keep, kinds = result.keep, trained.get("train.kinds")
    names = list(result.questions)
    right = right_answers(result, names).mean(0)
    seen = np.array([kinds is None or result.seeds[0][name].kind in kinds for name in names])
    low, high = trained.get("train.min_keep"), trained.get("train.max_keep")
    drawn = None if low is None or high is None else (low, high)
    within = drawn[0] <= keep <= drawn[1] if drawn and isinstance(keep, int) else None
    return {
        "method": label,
        "trained_at": drawn,
        "judged_at": trained.get("train.val_keep"),
        "trained_kinds": kinds,
        "keep": keep,
        "within_trained_budgets": within,
        "on_trained_kinds": float(right[seen].mean()) if seen.any() else None,
        "on_other_kinds": float(right[~seen].mean()) if (~seen).any() else None,
        "n_other_kinds": int((~seen).sum()),
    }
