"""Run a sweep: every method that the store can serve x budgets x positions, and what else the config crosses.

<run_dir>/sweep/        (sweep-val/ for the validation split)
  results.csv           one row per cell, seeds averaged; rows of cells that could not run hold the reason
  table.md              the results for people
  summary.json          everything, for programs
  accuracy_vs_*.png     against tokens, FLOPs and measured latency
  latency.json          the latencies, each measured once
  eval/                 predictions and cells.json, as `eval` writes them: `compare` reads them
"""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from configs.progress import PROGRESS, ProgressBar
from stage2_prune.compare import gap
from stage2_prune.errors import Infeasible
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.canary import check_layer_loop
from stage2_prune.evaluation.cell_progress import Progress, open_progress
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet, require_budgets
from stage2_prune.evaluation.fit_batch import with_batch_size
from stage2_prune.evaluation.predictions import PredictionFile, alone, read_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import Excluded
from stage2_prune.session.session import Session, add_language
from stage2_prune.sweep import latency
from stage2_prune.sweep import plot as sweep_plot
from stage2_prune.sweep import report as sweep_report
from stage2_prune.sweep import rows as sweep_rows
from stage2_prune.sweep.crew import Work, below_sweep, cpu_threads, inner, share
from stage2_prune.sweep.grid import Grid, build, open_servable, wanted
from store.questions.question import Question


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Evaluate the whole grid; an interrupted sweep goes on where it stopped.

    Each cell is answered once, and each latency is measured once. Where `oracle` has searched in the same run directory, rows
    say how much of the gap to its results they close. Methods that cannot be served and budgets that cannot be
    met are listed with the reason.

    Args:
        experiment: the config.
        overwrite: whether to replace predictions of other settings.
        allow_foreign_device: whether to accept a store whose re-projection differs as little as another device explains.

    Returns:
        The content of `sweep/summary.json`.

    Raises:
        OtherRun: (exit 2) for predictions of other settings, unless `overwrite`.
        RunLocked: (exit 6) while another command writes into the folder.
    """
    variants = wanted(experiment)
    require_budgets(experiment, {variant.label: variant.pruner for variant in variants})
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    served = open_servable(experiment, variants)
    with alone(experiment.sweep_dir), cpu_threads(experiment.sweep.threads):
        session = add_language(experiment, served.features, allow_foreign_device)
        grid = build(session, served.variants)
        grid.unavailable[:0] = served.unavailable
        asked, excluded = session.features.answerable(chosen.questions)
        session = with_batch_size(session, asked)
        check_layer_loop(session, grid.cells, asked)
        _drop_impossible(session, grid, asked)
        todo = open_progress(below_sweep(session), grid.cells, grid.digests, asked, overwrite)
        measured = _measure(session, todo, asked, overwrite)
        _answer(session, todo, asked, allow_foreign_device)
        summary = _summary(session, grid, asked, [*chosen.unanswered, *excluded]) | {"machine": latency.machine()}
        summary |= sweep_rows.complete(
            summary, grid, {variant.label: variant for variant in variants}, measured, session.features.patches
        )
        gaps = gap.measure([experiment.sweep_dir], experiment.oracle_dir, experiment.eval)
        summary = sweep_rows.with_gaps(summary, gaps)
        _write(experiment, summary)
    return summary


def _drop_impossible(session: Session, grid: Grid, asked: Sequence[Question]) -> None:
    """Move cells that their method refuses to the infeasible budgets; raise Infeasible (exit 2) if no cell is left."""
    failed = latency.probe(session, grid.cells, asked[0])
    for cell in grid.cells:
        if cell.name in failed:
            unmet = Unmet(cell.label, cell.keep or 0, cell.positions, failed[cell.name])
            grid.infeasible += [] if unmet in grid.infeasible else [unmet]
    grid.cells = [cell for cell in grid.cells if cell.name not in failed]
    if not grid.cells:
        first: Unmet | Unavailable = [*grid.infeasible, *grid.unavailable][0]
        raise Infeasible(f"expected a cell that can run, there is none: {first.pruner}, {first.reason}")


def _measure(
    session: Session, todo: Sequence[Progress], asked: Sequence[Question], overwrite: bool
) -> dict[sweep_rows.Key, latency.Latency]:
    """Measure the latency of each cell's first seed, before other processes of this sweep disturb the clock."""
    first: dict[sweep_rows.Key, Progress] = {}
    for progress in todo:
        first.setdefault(sweep_rows.key(progress.cell), progress)
    path = session.experiment.sweep_dir / "latency.json"
    with ProgressBar(what="latency", total=len(first), unit="cells") as bar:
        cells = {progress.cell.name: (progress.cell, progress.identity) for progress in first.values()}
        latencies = latency.measure(session, cells, asked, path, bar.update, overwrite)
    return {key: latencies[progress.cell.name] for key, progress in first.items()}


def _answer(session: Session, todo: Sequence[Progress], asked: Sequence[Question], allow_foreign_device: bool) -> None:
    """Let the workers answer the cells that are not finished."""
    left = [progress for progress in todo if not progress.file.finished]
    tasks = [list(group) for _, group in groupby(left, key=lambda progress: progress.cell.label)]
    tasks.sort(key=lambda task: -sum(progress.cell.schedule.mean for progress in task))
    work = Work(
        session.experiment,
        tuple(tuple(progress.cell.name for progress in task) for task in tasks),
        {progress.cell.name: progress.identity for progress in left},
        tuple(asked),
        allow_foreign_device,
    )
    done = sum(len(progress.file.rows) for progress in todo)
    total, file = len(todo) * len(asked), session.experiment.sweep_dir / PROGRESS
    with ProgressBar(what="sweep", total=total, initial=done, unit="answers", file=file) as bar:
        if tasks:
            share(work, session, {progress.cell.name: progress.cell for progress in left}, bar.update)


def _summary(session: Session, grid: Grid, asked: Sequence[Question], excluded: Sequence[Excluded]) -> dict[str, Any]:
    """Summarise all cells from their files of predictions, as an evaluation does."""
    folder = inner(session.experiment).run_dir / "eval"
    records, batching = read_cells(folder), Batching.of(session.experiment)

    def path(cell: Cell) -> Path:
        return folder / "predictions" / f"{cell.name}.jsonl"

    evaluated = [
        Evaluated(
            cell,
            PredictionFile(path(cell), batching, asked, records[cell.name]["identity"]).rows,
            records[cell.name],
        )
        for cell in grid.cells
    ]
    return summarise(session, evaluated, asked, excluded, grid.infeasible, grid.unavailable, folder=folder.parent)


def _write(experiment: Experiment, summary: dict[str, Any]) -> None:
    folder: Path = experiment.sweep_dir
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "results.csv", sweep_rows.csv_text(summary))
    write_atomically(folder / "table.md", sweep_report.table(summary))
    save_resolved(experiment, folder)
    for axis in sweep_plot.AXES:
        sweep_plot.plot(summary, axis, folder / f"accuracy_vs_{axis}.png")
