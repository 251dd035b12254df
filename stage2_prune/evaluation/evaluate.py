"""Evaluation: every (pruner, budget, positions, seed) of a config on the same batches, from the store."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from configs.experiment import Experiment
from configs.files.atomic import write_atomically
from configs.load import save_resolved
from configs.progress import ProgressBar
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.evaluation import report
from stage2_prune.evaluation.canary import check_layer_loop
from stage2_prune.evaluation.cell_progress import Progress, open_progress
from stage2_prune.evaluation.cells import Unavailable, Unmet, available, check_budgets, configured_pruners, plan
from stage2_prune.evaluation.predictions import alone, read_cells, write_cells
from stage2_prune.evaluation.summary import Evaluated, summarise
from stage2_prune.language.layer_loop import PruningLanguage, pruning_inside, require_loop
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.ask import Prepared, ask, prepare
from stage2_prune.session.choose import choose_scored
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.prune_batch import prune_batch
from stage2_prune.session.session import Session, open_session
from store.questions.question import Question


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Evaluate the configured pruners; returns what `eval/summary.json` holds.

    Writes `eval/predictions/*.jsonl`, `eval/summary.json`, `eval/table.md` and `eval/accuracy_vs_tokens.png`
    into the run directory. Complete predictions of the same settings are reused, interrupted ones are
    resumed; predictions of other settings raise OtherRun unless `overwrite`. Raises RunLocked (exit 6) while another
    command writes there.
    """
    (chosen,) = choose_scored(experiment, experiment.eval.split)
    methods, unavailable = available(configured_pruners(experiment), experiment.model)
    needs = frozenset[str]().union(*(pruner.needs for pruner in methods.values()))
    session = open_session(experiment, needs, allow_foreign_device)
    methods, closed = able_inside(session, methods)
    unavailable += closed
    check_budgets(experiment, session.features.patches)
    bound, digests = bind(session, methods)
    asked, excluded = session.features.answerable(chosen.questions)
    depth: int = session.language.model.config.num_hidden_layers
    cells, unmet = plan(experiment, bound, session.features.patches, depth)
    if not cells:
        raise Infeasible(f"expected a budget that a method can meet, none can: {_why_none(unmet, unavailable)}")
    folder = experiment.run_dir / "eval"
    with alone(folder):
        todo = open_progress(session, cells, digests, asked, overwrite)
        check_layer_loop(session, [one.cell for one in todo if one.file.left], asked)
        answer(session, todo, asked)
        records = read_cells(folder)
        evaluated = [Evaluated(p.cell, p.file.rows, records[p.cell.name]) for p in todo]
        summary = summarise(
            session, evaluated, asked, [*chosen.unanswered, *excluded], unmet, unavailable, folder=folder
        )
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "table.md", report.table(summary))
        report.plot(summary, folder / "accuracy_vs_tokens.png")
        save_resolved(experiment, folder)
    return summary


def _why_none(unmet: Sequence[Unmet], unavailable: Sequence[Unavailable]) -> str:
    first = [*unmet, *unavailable][0]
    return f"{first.pruner}, {first.reason}"


def able_inside(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], list[Unavailable]]:
    """Leave out the methods that prune inside a language model whose layers the layer loop does not know."""
    able, closed = dict(methods), list[Unavailable]()
    for label, pruner in methods.items():
        try:
            if pruner.place == "in_llm":
                require_loop(session.language.model.model)
        except PrunerMisused as unknown:
            del able[label]
            closed.append(Unavailable(label, str(unknown)))
    return able, closed


def bind(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], dict[str, str]]:
    """The pruners, trained ones with their weights, and the digests of the weights that methods read.

    Raises NotTrained (exit 5) naming `make train` where weights are missing.
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
    told: Callable[[int], object] | None = None,
) -> None:
    """Ask every question in every cell that lacks it: features are read once per batch, for all cells.

    `told` is called with each number of answers, in place of a progress bar, and with 0 before they are written: what it
    raises then leaves the files as they are.
    """
    section = session.experiment.eval
    jobs = _jobs(todo, asked)
    answers = sum(len(batch) * len(waiting) for batch, waiting in jobs)
    with ProgressBar(what="eval", total=answers, unit="answers", hidden=told is not None) as bar:
        told = bar.update if told is None else told
        for batch, waiting in zip(session.features.batches([asked for asked, _ in jobs]), jobs, strict=True):
            prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt, section.rank)
            for progress in waiting[1]:
                _answer_batch(session, progress, batch, prepared, told)
                told(len(batch.questions))
    timed = {p.cell.name: p.record() for p in todo if p.selector}
    write_cells(session.experiment.run_dir / "eval", timed)
    for progress in todo:
        progress.file.finish()


def _jobs(todo: Sequence[Progress], asked: Sequence[Question]) -> list[tuple[list[Question], list[Progress]]]:
    """Every batch that lacks an answer, in question order, with the cells that lack it."""
    place = {question.question_id: number for number, question in enumerate(asked)}
    jobs: dict[tuple[str, ...], tuple[list[Question], list[Progress]]] = {}
    for progress in todo:
        for batch in progress.file.left:
            ids = tuple(question.question_id for question in batch)
            jobs.setdefault(ids, (batch, []))[1].append(progress)
    return sorted(jobs.values(), key=lambda job: place[job[0][0].question_id])


@torch.no_grad()
def _answer_batch(
    session: Session, progress: Progress, batch: FeatureBatch, prepared: Prepared, told: Callable[[int], object]
) -> None:
    cell = progress.cell
    start = _now(session)
    batch, pruned = prune_batch(cell.pruner, batch, cell.schedule.entering, session.reader)
    seconds = _now(session) - start
    language = session.language
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    section = session.experiment.eval
    answers = ask(language, batch, prepared, pruned, cell.positions, section.max_new_tokens)
    told(0)
    progress.file.append(answers)
    if isinstance(language, PruningLanguage):
        seconds += language.stopwatch.seconds
    progress.selector.append((seconds, len(batch.tokens.image_ids)))


def _now(session: Session) -> float:
    """Seconds, after what the device was still doing."""
    if session.language.device.type == "cuda":
        torch.cuda.synchronize(session.language.device)
    return time.perf_counter()
