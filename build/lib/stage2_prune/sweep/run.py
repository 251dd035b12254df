"""A sweep: every method that the store can serve x budgets x positions, and what else the config crosses.

<run_dir>/sweep/
  results.csv           one row per cell, seeds averaged; cells that could not be had with the reason
  table.md              for people
  summary.json          everything, for programs
  accuracy_vs_*.png     against tokens, FLOPs and measured latency
  latency.json          what was measured on the clock, once
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
from configs.progress import ProgressBar
from stage2_prune.errors import Infeasible
from stage2_prune.evaluation.canary import check_layer_loop
from stage2_prune.evaluation.cell_progress import Progress, open_progress
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet
from stage2_prune.evaluation.predictions import PredictionFile, alone, read_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import Excluded
from stage2_prune.session.session import Session, open_session
from stage2_prune.sweep import latency
from stage2_prune.sweep import plot as sweep_plot
from stage2_prune.sweep import report as sweep_report
from stage2_prune.sweep import rows as sweep_rows
from stage2_prune.sweep.crew import Work, cpu_threads, inner, share
from stage2_prune.sweep.grid import Grid, build, needs, servable, wanted
from store.questions.question import Question


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Evaluate the whole grid; returns what `sweep/summary.json` holds.

    Goes on where it stopped: each cell is answered once, and each latency measured once. Methods that cannot be served
    and cells that cannot be met are listed. Raises OtherRun (exit 2) for predictions of other settings, unless `overwrite`,
    and RunLocked (exit 6) while another command writes there.
    """
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    everyone = wanted(experiment)
    named, unavailable = servable(experiment, everyone)
    with alone(experiment.run_dir / "sweep"), cpu_threads(experiment.sweep.threads):
        session = open_session(experiment, needs(named), allow_foreign_device)
        grid = build(session, named)
        grid.unavailable[:0] = unavailable
        asked, excluded = session.features.answerable(chosen.questions)
        check_layer_loop(session, grid.cells, asked)
        _drop_impossible(session, grid, asked)
        todo = open_progress(_below(session), grid.cells, grid.digests, asked, overwrite)
        measured = _measure(session, todo, asked, overwrite)
        _answer(session, todo, asked, allow_foreign_device)
        summary = _summary(session, grid, asked, [*chosen.unanswered, *excluded]) | {"machine": latency.machine()}
        summary |= sweep_rows.complete(
            summary, grid, {one.label: one for one in everyone}, measured, session.features.patches
        )
        _write(experiment, summary)
    return summary


def _below(session: Session) -> Session:
    """The session of an experiment whose predictions lie below `sweep`."""
    return Session(inner(session.experiment), session.features, session.language, session.reprojection, session.exact)


def _drop_impossible(session: Session, grid: Grid, asked: Sequence[Question]) -> None:
    """Move cells that their method refuses from the cells to the infeasible; Infeasible (exit 2) if none is left."""
    failed = latency.probe(session, grid.cells, asked[0])
    for cell in grid.cells:
        if cell.name in failed:
            unmet = Unmet(cell.label, cell.keep or 0, cell.positions, failed[cell.name])
            grid.infeasible += [] if unmet in grid.infeasible else [unmet]
    grid.cells = [cell for cell in grid.cells if cell.name not in failed]
    if not grid.cells:
        first: Unmet | Unavailable = [*grid.infeasible, *grid.unavailable][0]
        raise Infeasible(f"expected a cell that can be had, there is none: {first.pruner}, {first.reason}")


def _measure(
    session: Session, todo: Sequence[Progress], asked: Sequence[Question], overwrite: bool
) -> dict[sweep_rows.Key, latency.Latency]:
    """The latency of each cell's first seed, before other processes disturb it."""
    first: dict[sweep_rows.Key, Progress] = {}
    for one in todo:
        first.setdefault(sweep_rows.key(one.cell), one)
    path = session.experiment.run_dir / "sweep" / "latency.json"
    with ProgressBar(what="latency", total=len(first), unit="cells") as bar:
        cells = {one.cell.name: (one.cell, one.identity) for one in first.values()}
        found = latency.measure(session, cells, asked, path, bar.update, overwrite)
    return {key: found[one.cell.name] for key, one in first.items()}


def _answer(session: Session, todo: Sequence[Progress], asked: Sequence[Question], allow_foreign_device: bool) -> None:
    """Let the workers answer what is not answered yet."""
    left = [one for one in todo if not one.file.finished]
    tasks = [list(group) for _, group in groupby(left, key=lambda one: one.cell.label)]
    tasks.sort(key=lambda task: -sum(one.cell.schedule.mean for one in task))
    work = Work(
        session.experiment,
        tuple(tuple(one.cell.name for one in task) for task in tasks),
        {one.cell.name: one.identity for one in left},
        tuple(asked),
        allow_foreign_device,
    )
    answers = sum(len(asked) - len(one.file.rows) for one in left)
    with ProgressBar(what="sweep", total=answers, unit="answers") as bar:
        if tasks:
            share(work, session, {one.cell.name: one.cell for one in left}, bar.update)


def _summary(session: Session, grid: Grid, asked: Sequence[Question], excluded: Sequence[Excluded]) -> dict[str, Any]:
    folder = inner(session.experiment).run_dir / "eval"
    records, size = read_cells(folder), session.experiment.eval.batch_size

    def path(cell: Cell) -> Path:
        return folder / "predictions" / f"{cell.name}.jsonl"

    evaluated = [
        Evaluated(
            cell,
            PredictionFile(path(cell), size, asked, records[cell.name]["identity"]).rows,
            records[cell.name],
        )
        for cell in grid.cells
    ]
    return summarise(session, evaluated, asked, excluded, grid.infeasible, grid.unavailable, folder=folder.parent)


def _write(experiment: Experiment, summary: dict[str, Any]) -> None:
    folder: Path = experiment.run_dir / "sweep"
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "results.csv", sweep_rows.csv_text(summary))
    write_atomically(folder / "table.md", sweep_report.table(summary))
    save_resolved(experiment, folder)
    for axis in sweep_plot.AXES:
        sweep_plot.plot(summary, axis, folder / f"accuracy_vs_{axis}.png")
