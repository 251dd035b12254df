"""Evaluation: every (pruner, budget, positions, seed) of a config on the same batches, from the store."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from configs.atomic import write_atomically
from configs.experiment import Experiment
from configs.load import save_resolved
from configs.progress import ProgressBar
from stage2_prune import report, weights
from stage2_prune.ask import Prepared, ask, prepare
from stage2_prune.cells import Cell, Unavailable, Unmet, available, check_budgets, configured_pruners, plan
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.features import FeatureBatch
from stage2_prune.in_llm import InLLMPruner
from stage2_prune.layer_loop import PruningLanguage, pruning_inside
from stage2_prune.predictions import PredictionFile, alone, read_cells, refuse_other_runs, write_cells
from stage2_prune.prune_batch import prune_batch
from stage2_prune.pruner import Pruner, TrainedPruner
from stage2_prune.session import Session, digest, open_session
from stage2_prune.summary import Evaluated, summarise
from store.questions import Question, read_questions, select


@dataclass
class Progress:
    """One cell while it is evaluated."""

    cell: Cell
    file: PredictionFile
    identity: dict[str, Any]
    selector_seconds: float = 0.0
    images: int = 0

    def record(self) -> dict[str, Any]:
        """What `cells.json` keeps of it."""
        per_image = 1000 * self.selector_seconds / self.images if self.images else None
        return {"identity": self.identity, "selector_ms_per_image": per_image}


def run(experiment: Experiment, overwrite: bool = False, allow_foreign_device: bool = False) -> dict[str, Any]:
    """Evaluate the configured pruners; returns what `eval/summary.json` holds.

    Writes `eval/predictions/*.jsonl`, `eval/summary.json`, `eval/table.md` and `eval/accuracy_vs_tokens.png`
    into the run directory. Complete predictions of the same settings are reused, interrupted ones are
    resumed; predictions of other settings raise OtherRun unless `overwrite`. Raises RunLocked (exit 6) while another
    command writes there.
    """
    questions = select(read_questions(experiment.data), experiment.data, experiment.eval.split)
    if not questions:
        raise PrunerMisused(
            f"expected questions in the {experiment.eval.split} split, there are none: check data.questions"
        )
    methods, unavailable = available(configured_pruners(experiment), experiment.model)
    needs = frozenset[str]().union(*(pruner.needs for pruner in methods.values()))
    session = open_session(experiment, needs, allow_foreign_device)
    check_budgets(experiment, session.features.patches)
    bound, digests = bind(session, methods)
    asked, excluded = session.features.answerable(questions)
    depth: int = session.language.model.config.num_hidden_layers
    cells, unmet = plan(experiment, bound, session.features.patches, depth)
    if not cells:
        raise Infeasible(f"expected a budget that a method can meet, none can: {_why_none(unmet, unavailable)}")
    folder = experiment.run_dir / "eval"
    with alone(folder):
        todo = open_progress(session, cells, digests, asked, overwrite)
        answer(session, todo, asked)
        records = read_cells(folder)
        evaluated = [Evaluated(p.cell, p.file.rows, records[p.cell.name]) for p in todo]
        summary = summarise(session, evaluated, asked, excluded, unmet, unavailable)
        write_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "table.md", report.table(summary))
        report.plot(summary, folder / "accuracy_vs_tokens.png")
        save_resolved(experiment, folder)
    return summary


def _why_none(unmet: Sequence[Unmet], unavailable: Sequence[Unavailable]) -> str:
    first = [*unmet, *unavailable][0]
    return f"{first.pruner}, {first.reason}"


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
            folder = weights.folder(session.experiment.run_dir, label)
            pruner, record = weights.load(pruner, label, spec, folder)
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
    left = {p.cell.name: len(asked) - len(p.file.rows) for p in todo}
    done = len(asked) - max(left.values())
    batches = [asked[start : start + section.batch_size] for start in range(done, len(asked), section.batch_size)]
    with ProgressBar(what="eval", total=sum(left.values()), unit="answers", hidden=told is not None) as bar:
        told = bar.update if told is None else told
        for batch in session.features.batches(batches):
            prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
            for progress in todo:
                if len(progress.file.rows) == done:
                    _answer_batch(session, progress, batch, prepared, told)
                    told(len(batch.questions))
            done += len(batch.questions)
    timed = {p.cell.name: p.record() for p in todo if p.images}
    write_cells(session.experiment.run_dir / "eval", timed)
    for progress in todo:
        progress.file.finish()


@torch.no_grad()
def _answer_batch(
    session: Session, progress: Progress, batch: FeatureBatch, prepared: Prepared, told: Callable[[int], object]
) -> None:
    cell = progress.cell
    start = _now(session)
    batch, pruned = prune_batch(cell.pruner, batch, cell.schedule.entering, session.reader)
    progress.selector_seconds += _now(session) - start
    progress.images += len(batch.tokens.image_ids)
    language = session.language
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    section = session.experiment.eval
    answers = ask(language, batch, prepared, pruned, cell.positions, section.max_new_tokens)
    told(0)
    progress.file.append(answers)
    if isinstance(language, PruningLanguage):
        progress.selector_seconds += language.stopwatch.seconds


def _now(session: Session) -> float:
    """Seconds, after what the device was still doing."""
    if session.language.device.type == "cuda":
        torch.cuda.synchronize(session.language.device)
    return time.perf_counter()


def open_progress(
    session: Session,
    cells: Sequence[Cell],
    digests: Mapping[str, str],
    asked: Sequence[Question],
    overwrite: bool,
) -> list[Progress]:
    """The cells with what is on disk of each; its identity is recorded before its first prediction."""
    experiment = session.experiment
    folder = experiment.run_dir / "eval"
    features, common = session.features, _identity(session, asked)
    identities = {
        cell.name: common
        | {
            "pruner": cell.label,
            "parameters": json.loads(json.dumps(cell.pruner.parameters())),
            "code": cell.pruner.code,
            "weights": digests.get(cell.label),
            "features": {
                name: digest(fingerprint)
                for name, fingerprint in features.fingerprints(cell.pruner.needs | {features.source}).items()
            },
            "keep": cell.keep,
            "positions": cell.positions,
            "seed": cell.seed,
        }
        | ({"tokens_per_layer": list(cell.schedule.tokens_per_layer)} if cell.pruner.place == "in_llm" else {})
        for cell in cells
    }
    if not overwrite:
        refuse_other_runs(folder, identities)
    todo: list[Progress] = []
    recorded = read_cells(folder)
    for cell in cells:
        path = folder / "predictions" / f"{cell.name}.jsonl"
        if overwrite or cell.name not in recorded:
            PredictionFile.remove(path)
        file = PredictionFile(path, experiment.eval.batch_size, len(asked))
        todo.append(Progress(cell, file, identities[cell.name]))
    unfinished = {p.cell.name: p.record() for p in todo if not p.file.rows}
    write_cells(folder, unfinished)
    return todo


def _identity(session: Session, asked: Sequence[Question]) -> dict[str, Any]:
    """Everything but the cell itself that a prediction depends on."""
    return session.conditions | {
        "questions": digest([question.model_dump(exclude_defaults=True) for question in asked])
    }
