"""SLURM jobs through submitit (extra `[slurm]`): one array with a job per worker; a preempted job is queued again."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError
from configs.experiment import Experiment
from configs.parsing.nearest import no_such
from stage1_extract.engines.joined import Joined, in_turn
from stage1_extract.errors import EngineMissing, WorkerFailed
from store.writing.writer import StoreWriter

if TYPE_CHECKING:
    import submitit

POLL_SECONDS = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmJob:
    """What a job runs; submitit calls `checkpoint` when SLURM takes the job's machine away."""

    experiment: Experiment
    index: int
    workers: int
    allowed: int
    shards: tuple[int, ...]
    """Shards that were missing when the jobs were submitted."""

    def __call__(self) -> None:
        """Encode every shard of `shards` that is still missing and that no other worker holds."""
        turns = in_turn([*self.shards], self.index, self.workers)
        Joined(self.experiment, f"slurm {self.index}", self.experiment.model.device).extract(turns, self.allowed)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Submit the same job again.

        The new job skips committed shards; the shard under way is encoded by another worker, or once more by this job.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def check_parameters(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError (exit 2) for a parameter that submitit does not know, or that has another type than it expects.

    Raises EngineMissing (exit 5) without submitit.
    """
    submitit = _submitit()
    from submitit.core.plugins import get_executors

    executors = get_executors()
    shared: dict[str, type] = submitit.AutoExecutor._typed_parameters()
    of_executors = {name: {*executor._valid_parameters()} for name, executor in executors.items()}
    known = [*shared, *(f"{name}_{word}" for name, words in of_executors.items() for word in sorted(words)), "cluster"]
    old_names = {*shared}.union(*of_executors.values())  # submitit takes these with and without a prefix
    for name, value in settings.items():
        prefix, _, rest = name.partition("_")
        if name not in known and name not in old_names and not (prefix in executors and rest in shared):
            raise ConfigError(f"extract.slurm: {no_such('parameter', name, known)}")
        wanted = shared.get(name, object)
        if value is not None and not isinstance(value, (int, float) if wanted is float else wanted):
            raise ConfigError(f"extract.slurm.{name}: expected a value of type {wanted.__name__}, got {value!r}")
    cluster = settings.get("cluster")
    if cluster is not None and cluster not in executors:
        raise ConfigError(f"extract.slurm.cluster: {no_such('cluster', cluster, executors)}")
    if cluster == "slurm" and executors["slurm"].affinity() < 0:
        raise ConfigError(
            "extract.slurm.cluster: expected a machine with SLURM, no srun is found here: start the extraction on a machine "
            "that has it"
        )


def _submitit() -> Any:
    """Import submitit; EngineMissing (exit 5) if it is not installed."""
    try:
        import submitit
    except ImportError:
        raise EngineMissing("expected submitit for the engine slurm: pip install 'encode-once[slurm]'") from None
    return submitit


def run(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None]) -> None:
    """Submit the jobs and wait for them; they continue when this process is stopped.

    `look` is called as time passes, to show progress.

    Raises EngineMissing (exit 5) without submitit, and WorkerFailed (exit 3) with the traceback of a job that failed.
    """
    submitit = _submitit()
    workers, shards = experiment.extract.workers or 1, tuple(writer.missing_shards())
    settings: dict[str, Any] = dict(experiment.extract.slurm)
    cluster = settings.pop("cluster", None)
    executor = submitit.AutoExecutor(experiment.run_dir / "slurm", cluster=cluster)
    if cluster is None and executor.cluster == "local":
        _log.warning(
            "note: this machine has no SLURM (no srun is found), so the jobs run on this machine: start the extraction where "
            "SLURM is, or set extract.slurm to {cluster: local} if this is what you want"
        )
    executor.update_parameters(**settings)
    try:
        with executor.batch():
            jobs = [executor.submit(SlurmJob(experiment, index, workers, allowed, shards)) for index in range(workers)]
    except submitit.core.utils.FailedJobError as error:
        raise WorkerFailed(3, f"SLURM refused the jobs, see extract.slurm in the config: {error}") from None
    while not all(job.done() for job in jobs):
        look()
        time.sleep(POLL_SECONDS)
    failed = [job for job in jobs if job.exception() is not None]
    if failed:
        raise WorkerFailed(3, f"{len(failed)} of {workers} jobs failed, the first with: {failed[0].exception()}")
