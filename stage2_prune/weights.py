"""A trained pruner on disk: `weights.safetensors` and `pruner.json`, which says what they belong to.

    <run_dir>/pruner/<name>/
      weights.safetensors   the module's state dict
      pruner.json           schema, name, parameters, module spec, sha256 of the weights, training facts

The JSON is written last and names the weights by content: a pair torn by a crash is noticed.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from configs.atomic import write_atomically
from stage2_prune.errors import NotTrained, WeightsMismatch
from stage2_prune.pruner import ModuleSpec, TrainedPruner

WEIGHTS = "weights.safetensors"
RECORD = "pruner.json"


def folder(run_dir: Path, label: str) -> Path:
    """Where the weights of the pruner that the config calls `label` lie."""
    return run_dir / "pruner" / label


def save(pruner: TrainedPruner, name: str, spec: ModuleSpec, folder: Path, training: dict[str, Any]) -> str:
    """Write the module of `pruner` and what it belongs to; returns the sha256 of the weights file.

    `training` is anything that JSON holds: which epoch was chosen, the validation accuracy, the resolved
    config.
    """
    data = safetensors.torch.save(_state(pruner))
    digest = hashlib.sha256(data).hexdigest()
    record = {
        "schema": 1,
        "pruner": name,
        "parameters": pruner.parameters(),
        "spec": asdict(spec),
        "sha256": digest,
        "training": training,
    }
    write_atomically(folder / WEIGHTS, data)
    write_atomically(folder / RECORD, json.dumps(record, indent=2) + "\n")
    return digest


def load(pruner: TrainedPruner, name: str, spec: ModuleSpec, folder: Path) -> tuple[TrainedPruner, dict[str, Any]]:
    """`pruner` bound to its trained module in eval mode, and the record of `pruner.json`.

    Raises NotTrained (exit 5) where nothing was trained, WeightsMismatch where the weights belong to other
    parameters or to other features.
    """
    if not (folder / RECORD).is_file():
        raise NotTrained(f"expected trained weights of {name} in {folder}, there are none: run `make train` first")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    data = (folder / WEIGHTS).read_bytes()
    expected = {"pruner": name, "parameters": pruner.parameters(), "spec": asdict(spec)}
    expected = json.loads(json.dumps(expected))
    differing = [f"{key} {record[key]!r}, now {value!r}" for key, value in expected.items() if record[key] != value]
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        differing.append("its weights file is not the one that it records")
    if differing:
        raise WeightsMismatch(
            f"the weights in {folder} were trained for another pruner: {'; '.join(differing)}; "
            "undo the change or run `make train ARGS=--overwrite`"
        )
    module = pruner.fresh(spec, seed=0).module
    module.load_state_dict(safetensors.torch.load(data), strict=True)
    return pruner.with_module(module.requires_grad_(False).eval()), record


def _state(pruner: TrainedPruner) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in pruner.module.state_dict().items()}
