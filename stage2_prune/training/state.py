"""Save and load the state of a training, which can be interrupted at any moment and resumed to the bit.

<run_dir>/pruner/<name>/
config.yaml           the resolved config
log.jsonl             one line per step and per validation, each sealed
curves.png            the log as a picture
state.safetensors     while training: module, optimiser and best module so far, position and checksum in the header
weights.safetensors   when done: the module of the best epoch
pruner.json           when done: what the weights belong to and how they were made
images.jsonl          the images that the training sees, by split, digest and name
README.md             when done: the card
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

from configs.counted import counted
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
    """How far a training has come."""

    accuracies: list[float] = field(default_factory=list)
    """Validation accuracy of each epoch so far; epoch 0 is the freshly seeded module."""
    step: int = 0
    """Number of steps taken in the epoch that is under way."""
    log_lines: int = 0
    """Number of log lines that belong to this state; a crash may leave more lines in the log."""
    best_ci95: list[float] | None = None
    """Interval of the best epoch's accuracy; None for a single image, and in states of earlier versions."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """The state of the loss scaler, which works if the language model computes in float16."""

    @property
    def epoch(self) -> int:
        """Number of the epoch that is under way, or comes next."""
        return len(self.accuracies)

    @property
    def best_epoch(self) -> int:
        """The epoch of the highest accuracy; of equally good epochs the latest."""
        return max(range(len(self.accuracies)), key=lambda epoch: (self.accuracies[epoch], epoch))


class Log:
    """The JSONL log of a training. Its bytes are the same whether or not the training was interrupted and resumed."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path = path
        kept = (read_bytes(path, _AGAIN) or b"").splitlines(keepends=True)[:lines]
        if len(kept) < lines:
            raise OtherRun(f"expected {counted(lines, 'line')} or more in {path}, found {len(kept)}: {_AGAIN}")
        self.rows = [_row(path, number, line) for number, line in enumerate(kept, start=1)]
        write_atomically(path, b"".join(kept))

    def append(self, **row: Any) -> None:
        """Add a sealed line."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(seal(json.dumps(row)) + "\n")

    def sync(self) -> None:
        """Make all lines so far durable."""
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
    """Replace the saved state by a single file, which is therefore either whole or absent.

    Args:
        folder: the folder of the training.
        position: how far the training has come.
        identity: the settings of the training.
        module: the pruner's module.
        optimiser: the optimiser of the module.
        best: the weights of the best epoch so far.
    """
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
    """The content of `state.safetensors`."""

    position: Position
    identity: dict[str, Any]
    tensors: dict[str, Tensor]


def read_state(folder: Path) -> SavedState | None:
    """Read the saved state; None if there is no state. Raises DamagedRun (exit 4) if the file is damaged."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, str] = file.metadata() or {}
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        content = {key: header[key] for key in ("position", "identity")}
        if header.keys() == content.keys():
            say_unsealed(path)
        elif header.get("sha256") != _digest(tensors, content):
            raise ValueError("its checksum does not match")
        return SavedState(Position(**json.loads(content["position"])), json.loads(content["identity"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRun(f"{path} is damaged ({' '.join(str(error).split())}): {_AGAIN}") from None


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Take the sha256 of everything that a state holds."""
    return sha256(f"{weights_digest(tensors)} {header['position']} {header['identity']}".encode()).hexdigest()


def load_state(state: SavedState, module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Bring module and optimiser to a saved state, and return the best weights so far."""
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
