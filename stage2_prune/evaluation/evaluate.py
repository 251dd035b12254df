"""Evaluate every (pruner, budget, positions, seed) of a config on the same batches, from the store."""

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from configs.progress import PROGRESS, ProgressBar
from stage2_prune.evaluation import report as evaluation_report
from stage2_prune.evaluation.answering import Answered, Job, answers_to, shared_answers
from stage2_prune.evaluation.canary import check_layer_loop
from stage2_prune.evaluation.cell_progress import Progress, open_progress
from stage2_prune.evaluation.fit_batch import with_batch_size
from stage2_prune.evaluation.opening import open_cells
from stage2_prune.evaluation.predictions import alone, read_cells, write_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.session import Session
from store.questions.question import Question


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Evaluate the configured pruners.

    Writes `eval/predictions/*.jsonl`, `eval/summary.json`, `eval/table.md` and `eval/accuracy_vs_tokens.png`
    into the run directory. Complete predictions of the same settings are reused, and interrupted predictions are resumed.

    Args:
        experiment: the config.
        overwrite: whether to replace predictions of other settings.
        allow_foreign_device: whether to accept a store whose re-projection differs as little as another device explains.

    Returns:
        The content of `eval/summary.json`.

    Raises:
        OtherRun: (exit 2) for predictions of other settings, unless `overwrite`.
        RunLocked: (exit 6) while another command writes into the folder.
        WorkerFailed: if a worker ended with an error; all answers up to then are kept.
    """
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    opened = open_cells(experiment, allow_foreign_device)
    asked, excluded = opened.session.features.answerable(chosen.questions)
    folder = experiment.run_dir / "eval"
    with alone(folder):
        session = with_batch_size(opened.session, asked)
        todo = open_progress(session, opened.cells, opened.digests, asked, overwrite)
        check_layer_loop(session, [progress.cell for progress in todo if progress.file.left], asked)
        answer(session, todo, asked, answers=partial(shared_answers, allow_foreign_device=allow_foreign_device))
        records = read_cells(folder)
        evaluated = [Evaluated(p.cell, p.file.rows, records[p.cell.name]) for p in todo]
        left_out = [*chosen.unanswered, *excluded]
        summary = summarise(session, evaluated, asked, left_out, opened.unmet, opened.unavailable, folder=folder)
        _write(experiment, folder, summary)
    return summary


def _write(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary, its table, its plot and the resolved config."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.md", evaluation_report.table(summary))
    evaluation_report.plot(summary, folder / "accuracy_vs_tokens.png")
    save_resolved(experiment, folder)


def answer(
    session: Session,
    todo: Sequence[Progress],
    asked: Sequence[Question],
    report_progress: Callable[[int], object] | None = None,
    answers: Callable[[Session, Sequence[Job]], Generator[Answered, None, None]] = answers_to,
) -> None:
    """Ask every question in every cell that lacks its answer.

    Args:
        session: the opened store and model.
        todo: the cells, with the answers that they have so far.
        asked: all questions.
        report_progress: called in place of a progress bar: with 0 before answers are written, then with the number of answers
            written. If the call with 0 raises, the files stay as they are.
        answers: what answers the jobs, in this process or in several.
    """
    jobs, progress_of = _jobs(todo, asked), {progress.cell.name: progress for progress in todo}
    left, total = sum(len(job.questions) * len(job.cells) for job in jobs), len(todo) * len(asked)
    file = session.experiment.run_dir / "eval" / PROGRESS if report_progress is None else None
    with (
        ProgressBar(
            what="eval", total=total, initial=total - left, unit="answers", hidden=file is None, file=file
        ) as bar,
        closing(answers(session, jobs)) as answered,
    ):  # fmt: skip
        report = bar.update if report_progress is None else report_progress
        for part in answered:
            report(0)  # raises if the answers must not be written any more
            progress_of[part.cell].add(part)
            report(len(part.answers))
    timed = {p.cell.name: p.record() for p in todo if p.selector}
    write_cells(session.experiment.run_dir / "eval", timed)
    for progress in todo:
        progress.file.finish()


def _jobs(todo: Sequence[Progress], asked: Sequence[Question]) -> list[Job]:
    """List every batch that lacks an answer, in question order, with the cells that lack the answer."""
    rank = {question.question_id: number for number, question in enumerate(asked)}
    jobs: dict[tuple[str, ...], Job] = {}
    for progress in todo:
        for batch in progress.file.left:
            ids = tuple(question.question_id for question in batch)
            jobs.setdefault(ids, Job(batch, [])).cells.append(progress.cell)
    return sorted(jobs.values(), key=lambda job: rank[job.questions[0].question_id])
