"""Several processes that train one pruner together, as `torchrun` and `accelerate launch` start them: one on each GPU.

Each process, a rank, computes the gradient of its share of a step's images; the gradients are added, so that the result is that
of one process. The first rank alone validates and writes files.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.experiment import Experiment

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The place of a process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Return this rank's share of the items of a step."""
        return list(items[self.rank :: self.size])

    def from_first(self, make: Callable[[], float]) -> float:
        """Return what `make` returns in the first rank."""
        if self.size == 1:
            return make()
        told = [make() if self.first else 0.0]
        dist.broadcast_object_list(told, src=0)
        return told[0]

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

    def close(self) -> None:
        """Leave the other ranks."""
        if self.size > 1:
            dist.destroy_process_group()


def join_ranks(experiment: Experiment) -> tuple[Ranks, Experiment]:
    """Join the other processes that a launcher started, and give each process a GPU of its own.

    Returns:
        This process's rank, and the experiment on its device; without a launcher the only rank, and the experiment as it is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(), experiment
    on_gpu = experiment.model.device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        model = experiment.model.model_copy(update={"device": device})
        experiment = experiment.model_copy(update={"model": model})
    dist.init_process_group("nccl" if on_gpu else "gloo")
    return Ranks(dist.get_rank(), size), experiment
