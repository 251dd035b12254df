"""Find out how well the language model can answer from few patches, if they are the right ones: `oracle`.

<run_dir>/oracle/             (oracle-val/ for the validation split)
  search.json, search.jsonl   what was searched and found, question by question: see search_log.py
  eval/                       predictions and cells.json of `oracle_answer` and `oracle_self`, as `eval` writes them
  summary.json                the results for programs
  table.md                    the results for people, and the gap that the methods of this run's eval and sweep close

Both are found by a greedy search in a pool of candidates, so the best possible selection is at least as good: they are lower
bounds of the ceiling. `oracle_answer` knows the right answer; `oracle_self` knows what the unpruned model answers.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from configs.progress import say
from stage2_prune.analysis.truth import Truth, find_truth
from stage2_prune.compare import gap, gap_report
from stage2_prune.errors import PrunerMisused
from stage2_prune.evaluation import report as evaluation_report
from stage2_prune.evaluation.cell_progress import open_progress
from stage2_prune.evaluation.evaluate import answer
from stage2_prune.evaluation.fit_batch import with_batch_size
from stage2_prune.evaluation.predictions import alone, read_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.oracle.found_patches import AnswersFrom, cells_of
from stage2_prune.oracle.pool import sample
from stage2_prune.oracle.search import Search, identity_of, proposing
from stage2_prune.oracle.search_log import SearchLog
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import Excluded
from stage2_prune.session.session import Session, open_session
from store.questions.question import Question


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Search for the best patches of some questions of `eval.split`, and answer these questions from them.

    An interrupted search goes on where it stopped, and ends with the same bytes.

    Args:
        experiment: the config.
        overwrite: whether to replace a search and predictions of other settings.
        allow_foreign_device: whether to accept a store whose re-projection differs as little as another device explains.

    Returns:
        The content of `oracle/summary.json`.

    Raises:
        OtherRun: (exit 2) for a search of other settings, unless `overwrite`.
        PrunerMisused: (exit 2) if no budget is small enough, or a method cannot put patches forward.
        RunLocked: (exit 6) while another command writes into the folder.
    """
    methods = proposing(experiment.oracle)
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    needs = frozenset[str]().union(*(pruner.needs for pruner in methods.values()))
    session = open_session(experiment, needs, allow_foreign_device)
    for name, pruner in methods.items():
        session.features.check(name, pruner)
    budgets = _budgets(experiment, session.features.patches)
    asked, excluded = session.features.answerable(chosen.questions)
    asked = sample(asked, experiment.oracle.questions, experiment.oracle.seed)
    folder = experiment.oracle_dir
    with alone(folder):
        session = with_batch_size(session, asked)
        truth = _truth(session, asked)
        log = SearchLog(folder, identity_of(session, asked, truth, max(budgets)), overwrite)
        Search(session, methods, truth, max(budgets)).run(asked, log, folder)
        summary = _answered(session, asked, excluded, log, budgets, overwrite)
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "table.md", table(experiment, summary))
        save_resolved(experiment, folder)
    return summary


def table(experiment: Experiment, summary: dict[str, Any]) -> str:
    """Format the answers from what was found, and the gap that other methods of the same run close."""
    named = [row | {"pruner": f"{row['pruner']} ({gap.LOWER_BOUND})"} for row in summary["results"]]
    measured = gap.beside(experiment)
    return evaluation_report.table(summary | {"results": named}) + "\n" + gap_report.table(measured)


def _budgets(experiment: Experiment, patches: int) -> list[int]:
    """List the budgets to search for, in ascending order."""
    largest = min(experiment.oracle.largest, patches)
    budgets = sorted({keep for keep in experiment.prune.budgets if isinstance(keep, int) and keep <= largest})
    if not budgets:
        raise PrunerMisused(
            f"expected a budget of at most {largest} tokens in prune.budgets, there is none: name one, or raise oracle.largest"
        )
    return budgets


def _truth(session: Session, asked: Sequence[Question]) -> Truth:
    """Find the patches that show what questions are about; say why, where they are not known."""
    if session.features.store.plan.geometry.patch_grid is None:
        return {}
    truth, unknown = find_truth(session.experiment, asked, session.features.grid)
    if unknown is not None:
        say(f"oracle: the candidates hold no region of a question: {unknown}")
    return truth


def _answered(
    session: Session,
    asked: Sequence[Question],
    excluded: Sequence[Excluded],
    log: SearchLog,
    budgets: Sequence[int],
    overwrite: bool,
) -> dict[str, Any]:
    """Answer the questions from what was found for them, as an evaluation does, and summarise the answers."""
    experiment = session.experiment
    below = experiment.model_copy(update={"run_dir": experiment.oracle_dir})
    inner = replace(session, experiment=below)
    cells = cells_of(log.digest, budgets, session.language.depth)
    todo = open_progress(inner, cells, {}, asked, overwrite)
    answer(inner, todo, asked, answers=AnswersFrom(log.found))
    folder: Path = below.run_dir / "eval"
    records = read_cells(folder)
    evaluated = [Evaluated(progress.cell, progress.file.rows, records[progress.cell.name]) for progress in todo]
    return summarise(inner, evaluated, asked, excluded, folder=folder)
