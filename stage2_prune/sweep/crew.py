"""Share the cells of a sweep among processes: the caller is one of these processes, the others are spawned.

The division of work changes no bit, because every process has the same number of CPU threads and asks in the same batches.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

import torch

from configs.experiment import Experiment
from configs.processes.workers import require_parent, stop_workers, usable_cores
from stage2_prune.errors import WorkerFailed
from stage2_prune.evaluation.answering import PATIENCE_SECONDS, be_worker
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.cell_progress import Progress
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.evaluate import answer
from stage2_prune.evaluation.predictions import PredictionFile
from stage2_prune.session.session import Session, add_language
from stage2_prune.sweep.grid import build, open_servable, wanted
from store.layout.tensors import worker_devices
from store.questions.question import Question

_POLL_SECONDS = 0.2
"""Seconds between two looks at the workers' progress."""


@dataclass(frozen=True)
class Work:
    """The description of a sweep's work, which every worker receives."""

    experiment: Experiment
    tasks: tuple[tuple[str, ...], ...]
    """Tasks, the longest first. A task names the cells that one worker answers together, with features read once for all."""
    identities: Mapping[str, Mapping[str, Any]]
    """The settings that the predictions of each cell are made with, by the cell's name."""
    asked: tuple[Question, ...]
    allow_foreign_device: bool

    @property
    def workers(self) -> int:
        """The number of workers: the config's, else one per GPU or as many as the cores have room for; at most one a task."""
        section, devices = self.experiment.sweep, worker_devices(self.experiment.model.device)
        on_cpu = devices == ["cpu"] or not torch.cuda.is_available()
        room = usable_cores() // section.threads if on_cpu else len(devices)
        return max(1, min(section.workers or room, len(self.tasks)))


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inner(experiment: Experiment) -> Experiment:
    """Move the predictions of an experiment below `sweep`, apart from the predictions of `eval`."""
    return experiment.model_copy(update={"run_dir": experiment.sweep_dir})


def below_sweep(session: Session) -> Session:
    """Return the session of the same experiment, with its predictions below `sweep`."""
    return replace(session, experiment=inner(session.experiment))


def share(work: Work, session: Session, cells: Mapping[str, Cell], report: Callable[[int], object]) -> None:
    """Answer everything, in this process and in spawned workers.

    Args:
        work: the description of the work.
        session: the opened store and model of this process.
        cells: the cells by name.
        report: called with the number of new answers, of all workers, since the last call.

    Raises:
        WorkerFailed: if a worker ended with an error; all answers up to then are kept.
    """
    context = multiprocessing.get_context("spawn")
    taken, answered = context.Value("q", 0), context.Value("q", 0)  # tasks taken by anyone; answers of spawned workers
    devices = worker_devices(work.experiment.model.device)
    members = [
        context.Process(target=_main, args=(work, devices[index % len(devices)], taken, answered), daemon=True)
        for index in range(1, work.workers)
    ]
    seen = 0

    def report_all(answers: int) -> None:
        """Report the new answers of this process and of all workers since the last report; raise if a worker failed."""
        nonlocal seen
        others = answered.value
        report(answers + others - seen)
        seen = others
        _require_alive(members)

    try:
        for member in members:
            member.start()
        _answer(work, session, cells, taken, report_all)
        while any(member.exitcode is None for member in members):
            next(member for member in members if member.exitcode is None).join(_POLL_SECONDS)
            report_all(0)
    finally:
        stop_workers(members, PATIENCE_SECONDS)


def _require_alive(members: Sequence[SpawnProcess]) -> None:
    for member in members:
        if member.exitcode:
            raise WorkerFailed(member.exitcode)


def _main(work: Work, device: str, taken: Any, answered: Any) -> NoReturn:
    """Answer tasks in a spawned process."""

    def count(answers: int) -> None:
        """Count answers; before they are written, abort if the parent process has died.

        Another sweep may have started since, and may be writing the same files.
        """
        require_parent()
        with answered.get_lock():
            answered.value += answers

    def run() -> None:
        experiment = work.experiment.on_device(device)
        served = open_servable(experiment, wanted(experiment))
        session = add_language(experiment, served.features, work.allow_foreign_device)
        cells = {cell.name: cell for cell in build(session, served.variants).cells}
        _answer(work, session, cells, taken, count)

    be_worker(work.experiment.sweep.threads, run)


def _answer(
    work: Work, session: Session, cells: Mapping[str, Cell], taken: Any, report: Callable[[int], object]
) -> None:
    """Take and answer tasks until no task is left."""
    below = below_sweep(session)
    experiment = below.experiment
    folder, batching = experiment.run_dir / "eval" / "predictions", Batching.of(experiment)
    while (task := _take(taken)) < len(work.tasks):
        report(0)  # as before each write, because opening a file cuts it to whole batches
        todo = [
            Progress(
                cells[name],
                PredictionFile(folder / f"{name}.jsonl", batching, work.asked, work.identities[name]),
                dict(work.identities[name]),
                experiment.eval,
            )
            for name in work.tasks[task]
        ]
        answer(below, todo, work.asked, report)


def _take(taken: Any) -> int:
    """Return the number of the next task, counted from 0 over all workers."""
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1
