"""Evaluate every (pruner, budget, positions, seed) of a config on the same batches, from the store."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from configs.progress import PROGRESS, ProgressBar
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.evaluation import report as evaluation_report
from stage2_prune.evaluation.canary import check_layer_loop
from stage2_prune.evaluation.cell_progress import Progress, open_progress
from stage2_prune.evaluation.cells import (
    Unavailable,
    Unmet,
    available,
    check_budgets,
    configured_pruners,
    plan,
    require_budgets,
    shares_prefix,
)
from stage2_prune.evaluation.fit_batch import enough_memory, with_batch_size
from stage2_prune.evaluation.predictions import alone, read_cells, write_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.language.layer_loop import PruningLanguage, pruning_inside, require_loop
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.ask import Prepared, ask, prepare
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.selections import Selections
from stage2_prune.session.session import Session, open_session
from store.questions.question import Question
from store.reading.prefetch import prefetched


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
    """
    configured = configured_pruners(experiment)
    require_budgets(experiment, configured)
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    methods, unavailable = available(configured, experiment.model)
    needs = frozenset[str]().union(*(pruner.needs for pruner in methods.values()))
    session = open_session(experiment, needs, allow_foreign_device)
    methods, unable = able_inside(session, methods)
    unavailable += unable
    check_budgets(experiment, session.features.patches)
    bound, digests = bind(session, methods)
    asked, excluded = session.features.answerable(chosen.questions)
    cells, unmet = plan(experiment, bound, session.features.patches, session.language.depth)
    if not cells:
        raise Infeasible(f"expected a budget that a method can meet, none can: {_why_none(unmet, unavailable)}")
    folder = experiment.run_dir / "eval"
    with alone(folder):
        session = with_batch_size(session, asked)
        todo = open_progress(session, cells, digests, asked, overwrite)
        check_layer_loop(session, [progress.cell for progress in todo if progress.file.left], asked)
        answer(session, todo, asked)
        records = read_cells(folder)
        evaluated = [Evaluated(p.cell, p.file.rows, records[p.cell.name]) for p in todo]
        summary = summarise(
            session, evaluated, asked, [*chosen.unanswered, *excluded], unmet, unavailable, folder=folder
        )
        _write(experiment, folder, summary)
    return summary


def _write(experiment: Experiment, folder: Path, summary: dict[str, Any]) -> None:
    """Write the summary, its table, its plot and the resolved config."""
    write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "table.md", evaluation_report.table(summary))
    evaluation_report.plot(summary, folder / "accuracy_vs_tokens.png")
    save_resolved(experiment, folder)


def _why_none(unmet: Sequence[Unmet], unavailable: Sequence[Unavailable]) -> str:
    first = [*unmet, *unavailable][0]
    return f"{first.pruner}, {first.reason}"


def able_inside(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], list[Unavailable]]:
    """Set aside the methods that prune inside a language model whose layers the layer loop does not know.

    Returns:
        The methods that can run, and the others with the reason.
    """
    able, unable = dict(methods), list[Unavailable]()
    for label, pruner in methods.items():
        try:
            if pruner.place == "in_llm":
                require_loop(session.language.model.model)
        except PrunerMisused as unknown:
            del able[label]
            unable.append(Unavailable(label, str(unknown)))
    return able, unable


def bind(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], dict[str, str]]:
    """Check that the store serves each pruner, and load the weights of trained pruners.

    Returns:
        The pruners by label, and the digests of the weights (trained ones and CLIP's) that methods use, by label.

    Raises:
        NotTrained: (exit 5) naming `make train` if weights are missing.
    """
    bound: dict[str, Pruner] = {}
    digests: dict[str, str] = {}
    for label, pruner in methods.items():
        session.features.check(label, pruner)
        if "clip_text" in pruner.reads:
            digests[label] = session.reader.clip_digest
        if isinstance(pruner, TrainedPruner):
            spec = session.features.spec(pruner, session.language.width)
            folder = weights.folder(session.experiment.run_dir, label, pruner)
            belongs_to = weights.belongings(session.features, pruner, session.language_digest)
            pruner, record = weights.load(pruner, label, spec, folder, belongs_to)
            pruner = pruner.with_module(pruner.module.to(session.features.device))
            digests[label] = record["sha256"]
        bound[label] = pruner
    return bound, digests


def answer(
    session: Session,
    todo: Sequence[Progress],
    asked: Sequence[Question],
    report_progress: Callable[[int], object] | None = None,
) -> None:
    """Ask every question in every cell that lacks its answer; features are read once per batch, for all cells.

    Args:
        session: the opened store and model.
        todo: the cells, with the answers that they have so far.
        asked: all questions.
        report_progress: called in place of a progress bar: with 0 before answers are written, then with the number of answers
            written. If the call with 0 raises, the files stay as they are.
    """
    section, post_prompt = session.experiment.eval, session.experiment.data.post_prompt
    jobs = _jobs(todo, asked)
    left, total = sum(len(questions) * len(waiting) for questions, waiting in jobs), len(todo) * len(asked)
    file = session.experiment.run_dir / "eval" / PROGRESS if report_progress is None else None
    with ProgressBar(
        what="eval", total=total, initial=total - left, unit="answers", hidden=file is None, file=file
    ) as bar:
        report = bar.update if report_progress is None else report_progress
        selections = Selections((progress.cell.pruner, progress.cell.schedule.entering) for progress in todo)
        batches = [questions for questions, _ in jobs]
        texts = prefetched(batches, lambda questions: prepare(session.language, questions, post_prompt, section.rank))
        for batch, prepared, (_, waiting) in zip(session.features.batches(batches), texts, jobs, strict=True):
            for progress in waiting:
                with enough_memory(session.experiment):
                    _answer_batch(session, selections, progress, batch, prepared, report)
                report(len(batch.questions))
    timed = {p.cell.name: p.record() for p in todo if p.selector}
    write_cells(session.experiment.run_dir / "eval", timed)
    for progress in todo:
        progress.file.finish()


def _jobs(todo: Sequence[Progress], asked: Sequence[Question]) -> list[tuple[list[Question], list[Progress]]]:
    """List every batch that lacks an answer, in question order, with the cells that lack the answer."""
    rank = {question.question_id: number for number, question in enumerate(asked)}
    jobs: dict[tuple[str, ...], tuple[list[Question], list[Progress]]] = {}
    for progress in todo:
        for batch in progress.file.left:
            ids = tuple(question.question_id for question in batch)
            jobs.setdefault(ids, (batch, []))[1].append(progress)
    return sorted(jobs.values(), key=lambda job: rank[job[0][0].question_id])


@torch.no_grad()
def _answer_batch(
    session: Session, selections: Selections, progress: Progress, batch: FeatureBatch, prepared: Prepared,
    report: Callable[[int], object],
) -> None:  # fmt: skip
    """Prune a batch, ask the language model, and append the answers and the selector's time."""
    cell, language = progress.cell, session.language
    done = selections.prune(cell.pruner, batch, cell.schedule.entering, session.reader, progress.met)
    seconds = done.seconds
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    section = session.experiment.eval
    shared = shares_prefix(cell, section)
    answers = ask(language, done.batch, prepared, done.pruned, cell.positions, section.max_new_tokens, shared)
    report(0)  # raises if the answers must not be written any more
    progress.file.append(answers)
    if isinstance(language, PruningLanguage):
        seconds += language.stopwatch.seconds
    if done.images:
        progress.selector.append((seconds, done.images))
