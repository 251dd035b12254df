"""Several processes that train one pruner together, as `torchrun` and `accelerate launch` start them: one on each GPU.

Each process, a rank, computes the gradient of its share of a step's images; the gradients are added, so that the result is that
of one process. Validation questions are shared too. The first rank alone writes files and prints.
"""

import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.experiment import Experiment
from stage2_prune.errors import PrunerMisused
from store.layout.tensors import pick_device, worker_devices

T = TypeVar("T")
LAUNCHED = {"RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""Environment variables of a launcher; a cluster may set WORLD_SIZE alone, for a process that has no others beside it."""
PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others, such as for weights that come from a slow disk; when one dies the launcher ends all."""


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that train together."""

    rank: int = 0
    size: int = 1
    device: str | None = None
    """The GPU of this process; None leaves the device to the config."""

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def placed(self, experiment: Experiment) -> Experiment:
        """Return the experiment on this process's own GPU."""
        return experiment if self.device is None else experiment.on_device(self.device)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's share of the items."""
        return list(items[self.rank :: self.size])

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all ranks, in one exchange."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all ranks; a rank without images has none."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add([parameter.grad for parameter in trained if parameter.grad is not None])

    def wait(self) -> None:
        """Wait until every rank has come here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str) -> Generator[Ranks, None, None]:
    """Join the other processes that a launcher started within the block; without a launcher the only rank is this process.

    Only the first rank prints within the block; an error leaves the block, and is printed by every rank that it ends.

    Args:
        device: `model.device`; with `auto` and `cuda` each process has a GPU of its own.

    Raises:
        PrunerMisused: (exit 2) if the machine has fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or not os.environ.keys() >= LAUNCHED:
        yield Ranks()
        return
    gpu = _own_gpu(device)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group("gloo" if gpu is None else "nccl", timeout=PATIENCE, device_id=gpu)
    rank = dist.get_rank()
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stderr(nowhere) if rank else nullcontext(),
    ):
        yield Ranks(rank, size, None if gpu is None else str(gpu))
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that wait for this one


def prints() -> bool:
    """Return whether this process prints a result: the first that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0" or not os.environ.keys() >= LAUNCHED


def _own_gpu(device: str) -> torch.device | None:
    """Choose the GPU of this process, or None on a CPU; raise PrunerMisused (exit 2) for more processes than devices."""
    devices = worker_devices(device)
    own, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    chosen = pick_device(devices[min(own, len(devices) - 1)])
    if chosen.type == "cpu":
        return None
    if processes > len(devices):
        raise PrunerMisused(
            f"expected a device for each of {processes} processes, model.device {device!r} has {len(devices)} on this machine: "
            "lower --nproc-per-node, or set model.device to auto"
        )
    return chosen
