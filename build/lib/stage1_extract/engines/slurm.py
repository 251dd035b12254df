"""SLURM jobs through submitit (extra `[slurm]`): one array, a job per worker, put back into the queue when preempted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.experiment import Experiment
from stage1_extract.engines.joined import Joined, in_turn
from stage1_extract.errors import EngineMissing, WorkerFailed
from store.layout.plan import read_plan
from store.writing.writer import StoreWriter

if TYPE_CHECKING:
    import submitit

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Worker:
    """What a job runs; submitit calls `checkpoint` when SLURM takes its machine away."""

    experiment: Experiment
    index: int
    workers: int
    allowed: int

    def __call__(self) -> None:
        """Look what is missing now, and encode what is nobody else's."""
        shards = list(range(read_plan(self.experiment.store_path).n_shards))
        turns = in_turn(shards, self.index, self.workers)
        Joined(self.experiment, f"slurm {self.index}", self.experiment.model.device).extract(turns, self.allowed)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """The same job again: committed shards are left out, the one under way is another's or its own once more."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def run(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None]) -> None:
    """Submit the jobs and wait; `look` is called as time passes. Jobs go on when this process is stopped.

    Raises EngineMissing (exit 5) without submitit, WorkerFailed (exit 3) with the traceback of a job that failed.
    """
    try:
        import submitit
    except ImportError:
        raise EngineMissing("expected submitit for the engine slurm: pip install 'encode-once[slurm]'") from None
    workers = experiment.extract.workers or 1
    settings: dict[str, Any] = dict(experiment.extract.slurm)
    executor = submitit.AutoExecutor(experiment.run_dir / "slurm", cluster=settings.pop("cluster", None))
    executor.update_parameters(**settings)
    with executor.batch():
        jobs = [executor.submit(Worker(experiment, index, workers, allowed)) for index in range(workers)]
    while not all(job.done() for job in jobs):
        look()
        time.sleep(POLL_SECONDS)
    failed = [job for job in jobs if job.exception() is not None]
    if failed:
        raise WorkerFailed(3, f"{len(failed)} of {workers} jobs failed, the first with: {failed[0].exception()}")
