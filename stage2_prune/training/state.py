"""A training that can be interrupted at any moment and resumed to the bit.

<run_dir>/pruner/<name>/
config.yaml           the resolved config
log.jsonl             one line per step and per validation
curves.png            the same as a picture
state.safetensors     while training: module, optimiser and best module so far, position in the header
weights.safetensors   when done: the module of the best epoch
pruner.json           when done: what the weights belong to and how they were made
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor, nn

from configs.atomic import write_atomically
from stage2_prune.errors import OtherRun

STATE = "state.safetensors"
LOG = "log.jsonl"
CURVES = "curves.png"


@dataclass
class Position:
    """How far a training is."""

    accuracies: list[float] = field(default_factory=list)
    """Validation accuracy of each epoch so far; epoch 0 is the freshly seeded module."""
    step: int = 0
    """Steps taken in the epoch after those."""
    log_lines: int = 0
    """Lines of the log that belong to this state: a crash may leave more."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The loss scale's own state, where the language model computes in float16."""

    @property
    def epoch(self) -> int:
        """The epoch that comes next, or is under way."""
        return len(self.accuracies)

    @property
    def best_epoch(self) -> int:
        """Epoch of the highest accuracy; of equals the later."""
        return max(range(len(self.accuracies)), key=lambda epoch: (self.accuracies[epoch], epoch))


class Log:
    """The JSONL of a training; deterministic, so that an interrupted and resumed one is byte-equal."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True)[:lines] if path.is_file() else []
        if len(kept) < lines:
            raise OtherRun(
                f"expected {lines} lines or more in {path}, found {len(kept)}: "
                "restore it, or start again with --overwrite"
            )
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in kept]
        write_atomically(path, "".join(kept))

    def append(self, **row: Any) -> None:
        """Add a line."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Make the lines so far durable."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def save_state(
    folder: Path,
    position: Position,
    identity: Mapping[str, Any],
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    best: Mapping[str, Shaped[Tensor, "..."]],
) -> None:
    """Replace the saved state: one file, so it is whole or absent."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"position": json.dumps(asdict(position)), "identity": json.dumps(identity)}
    write_atomically(folder / STATE, safetensors.torch.save(owned, header))


def saved_identity(folder: Path) -> dict[str, Any] | None:
    """What the saved state belongs to; None where there is none."""
    if not (folder / STATE).is_file():
        return None
    with safe_open(folder / STATE, "pt") as file:
        return json.loads(file.metadata()["identity"])


def load_state(folder: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[Position, dict[str, Tensor]]:
    """Bring module and optimiser to the saved state; returns the position and the best weights so far."""
    with safe_open(folder / STATE, "pt") as file:
        position = Position(**json.loads(file.metadata()["position"]))
        parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimiser": {}}
        for key in file.keys():  # noqa: SIM118 (not a dict)
            part, name = key.split(".", 1)
            parts[part][name] = file.get_tensor(key)
    module.load_state_dict(parts["module"], strict=True)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["optimiser"].items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return position, parts["best"]
