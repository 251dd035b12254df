"""A training that can be interrupted at any moment and resumed to the bit.

<run_dir>/pruner/<name>/
config.yaml           the resolved config
log.jsonl             one line per step and per validation, each sealed
curves.png            the same as a picture
state.safetensors     while training: module, optimiser and best module so far, position and checksum in the header
weights.safetensors   when done: the module of the best epoch
pruner.json           when done: what the weights belong to and how they were made
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.files.atomic import write_atomically
from stage2_prune.errors import DamagedRun, OtherRun
from stage2_prune.session.sealed import read_bytes, say_unsealed, seal, unseal
from store.checkpoint.weights import weights_digest

STATE = "state.safetensors"
LOG = "log.jsonl"
CURVES = "curves.png"
_AGAIN = "put the file back as it was, or start again with --overwrite"


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
        kept = (read_bytes(path, _AGAIN) or b"").splitlines(keepends=True)[:lines]
        if len(kept) < lines:
            raise OtherRun(f"expected {lines} lines or more in {path}, found {len(kept)}: {_AGAIN}")
        self.rows = [_row(path, number, line) for number, line in enumerate(kept, start=1)]
        write_atomically(path, b"".join(kept))

    def append(self, **row: Any) -> None:
        """Add a line."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(seal(json.dumps(row)) + "\n")

    def sync(self) -> None:
        """Make the lines so far durable."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        body, is_sealed = unseal(line.removesuffix(b"\n"))
        row = json.loads(body.decode())
        if not (isinstance(row, dict) and row.get("event") in ("step", "validation")):
            raise ValueError("it is no line of a training")
    except (ValueError, RecursionError) as error:
        raise DamagedRun(f"line {number} of {path} is damaged ({error}): {_AGAIN}") from None
    if not is_sealed:
        say_unsealed(path)
    return row


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
    header |= {"sha256": _digest(owned, header)}
    write_atomically(folder / STATE, safetensors.torch.save(owned, header))


@dataclass(frozen=True)
class SavedState:
    """What `state.safetensors` holds."""

    position: Position
    identity: dict[str, Any]
    tensors: dict[str, Tensor]


def read_state(folder: Path) -> SavedState | None:
    """Read the saved state; None where there is none, DamagedRun (exit 4) if it is not as it was written."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        said = {key: header[key] for key in ("position", "identity")}
        if header.keys() == said.keys():
            say_unsealed(path)
        elif header.get("sha256") != _digest(tensors, said):
            raise ValueError("its checksum does not match")
        return SavedState(Position(**json.loads(said["position"])), json.loads(said["identity"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRun(f"{path} is damaged ({' '.join(str(error).split())}): {_AGAIN}") from None


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """sha256 over all that a state holds."""
    return sha256(f"{weights_digest(tensors)} {header['position']} {header['identity']}".encode()).hexdigest()


def load_state(state: SavedState, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Bring module and optimiser to a saved state; returns the best weights so far."""
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimiser": {}}
    for key, tensor in state.tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    module.load_state_dict(parts["module"], strict=True)
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["optimiser"].items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return parts["best"]
