"""Ray actors (extra `[ray]`): each owns a device; only shard numbers travel between processes, never features."""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import torch

from configs.experiment import Experiment
from stage1_extract.engines.joined import Joined
from stage1_extract.errors import EngineMissing, WorkerFailed
from store.writing.writer import StoreWriter

RETRIES = 2
"""How often a shard is tried again after the actor on it died."""
POLL_SECONDS = 0.5
_log = logging.getLogger(__name__)


class EncodingActor:
    """The actor: a worker with its model loaded, which is given one shard after the other."""

    def __init__(self, experiment: Experiment, allowed: int) -> None:
        self.allowed = allowed
        self._worker = Joined(experiment, f"ray {os.getpid()}", experiment.model.device)

    def extract_shard(self, shard: int) -> int:
        """Encode and commit one shard, unless it is done or another worker holds it; return its number."""
        self._worker.extract([shard], self.allowed)
        return shard


def run(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None]) -> None:
    """Hand every missing shard to an actor, in the cluster that RAY_ADDRESS names or in one that is started here.

    An actor that dies is replaced, and its shard is tried again. `look` is called as time passes, to show progress.

    Raises EngineMissing (exit 5) without Ray, and WorkerFailed (exit 3) for an actor that cannot be started and for a shard
    that met an error or on which actors died three times.
    """
    try:
        import ray
    except ImportError:
        raise EngineMissing("expected Ray for the engine ray: pip install 'encode-once[ray]'") from None
    started_here = not ray.is_initialized()
    if started_here:
        # Ray gives its workers a low priority: beside other work they may not start within the minute that Ray waits for them.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(log_to_driver=True, include_dashboard=False, logging_level=logging.WARNING)
    try:
        _hand_out(experiment, writer, allowed, look, ray)
    finally:
        if started_here:
            ray.shutdown()


def why_it_died(error: Exception) -> str:
    """Pick the line of Ray's report that says why an actor died.

    The last line says how its process ended, or which error kept it from starting. Where the machine is out of memory, the first
    line says so, and advice of many lines follows.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "low on memory" in line), lines[-1])


def _hand_out(experiment: Experiment, writer: StoreWriter, allowed: int, look: Callable[[], None], ray: Any) -> None:
    """Start the actors and keep each of them busy until no shard is left."""
    gpus = 1 if torch.cuda.is_available() or ray.cluster_resources().get("GPU") else 0
    actor_class = ray.remote(num_cpus=1, num_gpus=gpus)(EncodingActor)
    workers = experiment.extract.workers or int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
    waiting, deaths = deque(writer.missing_shards()), Counter[int]()
    idle = [actor_class.remote(experiment, allowed) for _ in range(min(workers, len(waiting)))]
    under_way: dict[Any, tuple[Any, int]] = {}
    while waiting or under_way:
        while idle and waiting:
            actor, shard = idle.pop(), waiting.popleft()
            under_way[actor.extract_shard.remote(shard)] = (actor, shard)
        done, _ = ray.wait(list(under_way), timeout=POLL_SECONDS)
        look()
        for result in done:
            actor, shard = under_way.pop(result)
            try:
                ray.get(result)
                idle.append(actor)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                reason = why_it_died(error)
                if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
                    raise WorkerFailed(3, f"an actor could not be started: {reason}") from None
                deaths[shard] += 1
                _log.warning("note: the actor at shard %d died: %s", shard, reason)
                if deaths[shard] > RETRIES:
                    raise WorkerFailed(
                        3,
                        f"shard {shard} was given up: actors died on it {deaths[shard]} times, at last because: {reason}",
                    ) from None
                waiting.append(shard)
                idle.append(actor_class.remote(experiment, allowed))
            except ray.exceptions.RayTaskError as error:
                raise WorkerFailed(3, f"shard {shard} failed: {error.cause}") from None
