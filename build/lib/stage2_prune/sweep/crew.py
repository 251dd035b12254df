"""Processes that share the cells of a sweep: the caller is one of them, the others are spawned.

Who answers which cell changes no bit: every process has the same number of CPU threads and asks in the same batches.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

import torch

from configs.cli import run_to_exit_code, stop_on_sigterm
from configs.errors import Interrupted
from configs.experiment import Experiment
from stage2_prune.errors import WorkerFailed
from stage2_prune.evaluation.cell_progress import Progress
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.evaluate import answer
from stage2_prune.evaluation.predictions import PredictionFile
from stage2_prune.session.session import Session, open_session
from stage2_prune.sweep.grid import build, needs, servable, wanted
from store.questions.question import Question

PATIENCE_SECONDS = 5.0
"""How long workers may take to end when the sweep does."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Work:
    """What is to be answered, as every worker is told it."""

    experiment: Experiment
    tasks: tuple[tuple[str, ...], ...]
    """Names of cells that one worker answers together, as features are read once for them; the longest first."""
    identities: Mapping[str, Mapping[str, Any]]
    """What the predictions of each cell are made with."""
    asked: tuple[Question, ...]
    allow_foreign_device: bool

    @property
    def workers(self) -> int:
        """As many as the config says, else one per GPU, or as many as the cores have room for; no more than tasks."""
        section, here = self.experiment.sweep, devices(self.experiment)
        on_cpu = here == ["cpu"] or not torch.cuda.is_available()
        many = _cores() // section.threads if on_cpu else len(here)
        return max(1, min(section.workers or many, len(self.tasks)))


def devices(experiment: Experiment) -> list[str]:
    """The devices of this machine that workers are spread over."""
    name = experiment.model.device
    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if name in ("auto", "cuda") and count else [name]


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many threads for torch on the CPU, in this block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def inner(experiment: Experiment) -> Experiment:
    """The same, with its predictions below `sweep`, where those of `eval` are not."""
    return experiment.model_copy(update={"run_dir": experiment.run_dir / "sweep"})


def share(work: Work, session: Session, cells: Mapping[str, Cell], told: Callable[[int], object]) -> None:
    """Answer everything; `told` is called with numbers of answers, of all workers.

    Raises WorkerFailed if a worker ended with an error; what was answered by then is kept.
    """
    context = multiprocessing.get_context("spawn")
    taken, answered = context.Value("q", 0), context.Value("q", 0)
    here = devices(work.experiment)
    members = [
        context.Process(target=_main, args=(work, here[index % len(here)], taken, answered), daemon=True)
        for index in range(1, work.workers)
    ]
    seen = 0

    def look(answers: int) -> None:
        nonlocal seen
        others = answered.value
        told(answers + others - seen)
        seen = others
        _require_alive(members)

    try:
        for member in members:
            member.start()
        _answer(work, session, cells, taken, look)
        while any(member.exitcode is None for member in members):
            next(member for member in members if member.exitcode is None).join(_POLL_SECONDS)
            look(0)
    finally:
        _stop(members)


def _require_alive(members: Sequence[SpawnProcess]) -> None:
    for member in members:
        if member.exitcode:
            raise WorkerFailed(member.exitcode)


def _stop(members: Sequence[SpawnProcess]) -> None:
    """No worker outlives the sweep."""
    started = [member for member in members if member.pid is not None]
    for member in started:
        member.terminate()
    for member in started:
        member.join(PATIENCE_SECONDS)
        if member.exitcode is None:
            member.kill()
            member.join()


def _main(work: Work, device: str, taken: Any, answered: Any) -> NoReturn:
    """A spawned worker: the exit codes of a command; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_on_sigterm()
    torch.set_num_threads(work.experiment.sweep.threads)

    def tell(answers: int) -> None:
        """Count answers; raise, before any is written, if nobody waits for them: another sweep may be there by now."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise Interrupted("the process that started this worker is gone; run the same command again to go on")
        with answered.get_lock():
            answered.value += answers

    def run() -> int:
        try:
            model = work.experiment.model.model_copy(update={"device": device})
            experiment = work.experiment.model_copy(update={"model": model})
            named, _ = servable(experiment, wanted(experiment))
            session = open_session(experiment, needs(named), work.allow_foreign_device)
            cells = {cell.name: cell for cell in build(session, named).cells}
            _answer(work, session, cells, taken, tell)
        except Interrupted as end:  # the parent has said it
            return end.exit_code
        return 0

    sys.exit(run_to_exit_code(run))


def _answer(work: Work, session: Session, cells: Mapping[str, Cell], taken: Any, told: Callable[[int], object]) -> None:
    """Take tasks until there are no more."""
    experiment = inner(session.experiment)
    below = Session(experiment, session.features, session.language, session.reprojection, session.exact)
    folder, size = experiment.run_dir / "eval" / "predictions", experiment.eval.batch_size
    while (task := _take(taken)) < len(work.tasks):
        told(0)  # as before each write: opening a file cuts it to whole batches
        todo = [
            Progress(
                cells[name],
                PredictionFile(folder / f"{name}.jsonl", size, work.asked, work.identities[name]),
                dict(work.identities[name]),
                experiment.eval,
            )
            for name in work.tasks[task]
        ]
        answer(below, todo, work.asked, told)


def _take(taken: Any) -> int:
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
