"""Ask questions in cells, batch by batch, in this process or in several: each has a device and a share of the batches.

Features are read once per batch, for all cells. How many processes there are changes no answer, because every batch is asked as
a whole, with as many CPU threads.
"""

import multiprocessing
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

import torch

from configs.cli import run_to_exit_code
from configs.errors import Interrupted
from configs.experiment import Experiment
from configs.processes.workers import begin_worker, require_parent, stop_workers
from stage2_prune.errors import WorkerFailed
from stage2_prune.evaluation.cells import Cell, shares_prefix
from stage2_prune.evaluation.fit_batch import enough_memory
from stage2_prune.evaluation.opening import open_cells
from stage2_prune.language.layer_loop import PruningLanguage, pruning_inside
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.session.ask import Prediction, Prepared, ask, prepare
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.selections import Selections
from stage2_prune.session.session import Session
from store.layout.tensors import worker_devices
from store.questions.question import Question
from store.reading.prefetch import prefetched

PATIENCE_SECONDS = 5.0
"""How long workers may take to end when they are told to, before they are killed."""


@dataclass(frozen=True)
class Job:
    """A batch of questions, and the cells in which they are asked."""

    questions: list[Question]
    cells: list[Cell]


@dataclass(frozen=True)
class Answered:
    """The answers to a batch of questions in one cell."""

    cell: str
    """The cell's name."""
    answers: Sequence[Prediction]
    seconds: float
    """How long the method itself took."""
    images: int
    """The number of images for which it chose in that time; 0 where every choice had been made before."""


@dataclass(frozen=True)
class Share:
    """The part of an evaluation that one spawned process does."""

    experiment: Experiment
    jobs: list[tuple[list[Question], list[str]]]
    """Batches, each with the names of its cells."""
    allow_foreign_device: bool
    threads: int
    """CPU threads of the process that shares its work: another number may change bits."""


def answers_to(session: Session, jobs: Sequence[Job]) -> Generator[Answered, None, None]:
    """Yield the answers to each batch of questions in each of its cells."""
    section, post_prompt = session.experiment.eval, session.experiment.data.post_prompt
    cells = {cell.name: cell for job in jobs for cell in job.cells}
    selections = Selections((cell.pruner, cell.schedule.entering) for cell in cells.values())
    met: dict[str, set[str]] = {name: set() for name in cells}
    batches = [job.questions for job in jobs]
    texts = prefetched(batches, lambda questions: prepare(session.language, questions, post_prompt, section.rank))
    for batch, prepared, job in zip(session.features.batches(batches), texts, jobs, strict=True):
        for cell in job.cells:
            with enough_memory(session.experiment):
                answered = _answer_batch(session, selections, cell, batch, prepared, met[cell.name])
            yield answered


@torch.no_grad()
def _answer_batch(
    session: Session, selections: Selections, cell: Cell, batch: FeatureBatch, prepared: Prepared, met: set[str]
) -> Answered:  # fmt: skip
    """Prune a batch and ask the language model; `met` are the images for which the method's time is known."""
    language, section = session.language, session.experiment.eval
    done = selections.prune(cell.pruner, batch, cell.schedule.entering, session.reader, met)
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    shared = shares_prefix(cell, section)
    answers = ask(language, done.batch, prepared, done.pruned, cell.positions, section.max_new_tokens, shared)
    inside = language.stopwatch.seconds if isinstance(language, PruningLanguage) else 0.0
    return Answered(cell.name, answers, done.seconds + inside, done.images)


def workers(experiment: Experiment, jobs: int) -> int:
    """Return the number of processes that answer: `eval.workers`, else one per GPU; at most one per batch."""
    return max(1, min(experiment.eval.workers or len(worker_devices(experiment.model.device)), jobs))


def shared_answers(
    session: Session, jobs: Sequence[Job], allow_foreign_device: bool = False
) -> Generator[Answered, None, None]:
    """Yield all answers, of this process and of spawned ones, as they come; each process does batches that follow one another.

    Raises WorkerFailed if a process ended with an error, with that process's exit code; it has printed the error.
    """
    experiment, count = session.experiment, workers(session.experiment, len(jobs))
    bounds = [len(jobs) * number // count for number in range(count + 1)]
    own, *others = [jobs[start:end] for start, end in pairwise(bounds)]
    devices = worker_devices(experiment.model.device)
    crew = Crew()
    try:
        for number, share in enumerate(others, start=1):
            named = [(job.questions, [cell.name for cell in job.cells]) for job in share]
            work = Share(experiment, named, allow_foreign_device, torch.get_num_threads())
            crew.start(work, devices[number % len(devices)])
        for answered in answers_to(session, own):
            yield answered
            yield from crew.answered()
        while crew.members:
            yield from crew.answered(wait_for_more=True)
    finally:
        crew.stop()


class Crew:
    """Spawned processes, each of which sends its answers through a pipe that it closes at its end."""

    def __init__(self) -> None:
        self.members: dict[Any, SpawnProcess] = {}
        """Each process that has not ended, by the end of its pipe at which answers arrive."""

    def start(self, share: Share, device: str) -> None:
        """Start a process for a share of the work."""
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_main, args=(share, device, sending), daemon=True)
        process.start()
        sending.close()
        self.members[receiving] = process

    def answered(self, wait_for_more: bool = False) -> Iterator[Answered]:
        """Yield the answers that have come, or wait for the next ones; raise WorkerFailed if a process ended with an error."""
        while self.members:
            ready: list[Any] = wait(list(self.members), None if wait_for_more else 0)
            if not ready:
                return
            for receiving in ready:
                try:
                    yield receiving.recv()
                except EOFError:
                    self._ended(receiving)
            wait_for_more = False

    def _ended(self, receiving: Any) -> None:
        process = self.members.pop(receiving)
        receiving.close()
        process.join()
        if process.exitcode:
            raise WorkerFailed(process.exitcode)

    def stop(self) -> None:
        """End the processes that still run."""
        stop_workers(self.members.values(), PATIENCE_SECONDS)


def _main(share: Share, device: str, sending: Any) -> NoReturn:
    """Answer a share of the work in a spawned process."""

    def run() -> None:
        opened = open_cells(share.experiment.on_device(device), share.allow_foreign_device)
        cells = {cell.name: cell for cell in opened.cells}
        jobs = [Job(questions, [cells[name] for name in names]) for questions, names in share.jobs]
        with closing(answers_to(opened.session, jobs)) as answered:
            for part in answered:
                require_parent()
                sending.send(part)

    be_worker(share.threads, run)


def be_worker(threads: int, run: Callable[[], None]) -> NoReturn:
    """Do the work of a spawned process with some CPU threads, and exit with the exit code of a command."""
    begin_worker()
    torch.set_num_threads(threads)

    def run_quietly() -> int:
        try:
            run()
        except Interrupted as end:  # the parent has printed the message
            return end.exit_code
        return 0

    sys.exit(run_to_exit_code(run_quietly))
