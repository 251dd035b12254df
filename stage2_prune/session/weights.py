"""A trained pruner on disk: `weights.safetensors` and `pruner.json`, which says what they belong to.

    <run_dir>/pruner/<name>/, or the folder that a method's `weights` names
      weights.safetensors   the module's state dict
      pruner.json           schema, name, parameters, module spec, sha256 of the weights, what they were trained with; sealed

The JSON is written last and names the weights by content: a pair torn by a crash is noticed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from configs.files.atomic import write_atomically
from stage2_prune.errors import DamagedRun, NotTrained, WeightsMismatch
from stage2_prune.pruning.pruner import ModuleSpec, TrainedPruner
from stage2_prune.session.features import Features
from stage2_prune.session.identity import differences
from stage2_prune.session.sealed import read_bytes, read_object, write_object

WEIGHTS = "weights.safetensors"
RECORD = "pruner.json"
_AGAIN = "copy the folder that `train` wrote again, or delete it and run `make train`"
_FIELDS = {"schema", "pruner", "parameters", "spec", "sha256", "training"}
_NAMES = {"checkpoint", "revision"}
"""Fields of a fingerprint that only name a checkpoint; the digests of its weights are others."""


def folder(run_dir: Path, label: str, pruner: TrainedPruner) -> Path:
    """Where the weights of the pruner that the config calls `label` lie: in the run's folder, or where it says."""
    return pruner.weights or run_dir / "pruner" / label


def belongings(features: Features, pruner: TrainedPruner, language_model: str | None) -> dict[str, Any]:
    """What weights belong to, as JSON: the features that the pruner looks at, and the language model that it is trained for.

    `language_model` is the digest of the model's weights; None where no model is at hand to compare. Which images and
    questions were trained on is no part of it.
    """
    arrays = features.fingerprints(pruner.needs | {features.source})
    semantic = {
        name: {key: value for key, value in fingerprint["semantic"].items() if key not in _NAMES}
        for name, fingerprint in arrays.items()
    }
    found: dict[str, Any] = {"features": json.loads(json.dumps(semantic))}
    return found if language_model is None else found | {"language_model": language_model}


def save(
    pruner: TrainedPruner,
    name: str,
    spec: ModuleSpec,
    folder: Path,
    belongs_to: Mapping[str, Any],
    training: Mapping[str, Any],
) -> str:
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
        "belongs_to": dict(belongs_to),
        "training": dict(training),
    }
    write_atomically(folder / WEIGHTS, data)
    write_object(folder / RECORD, record)
    return digest


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read `pruner.json`; None where there is none, DamagedRun (exit 4) if it is not as it was written."""
    path = folder / RECORD
    record = read_object(path, _AGAIN)
    if record is not None and not (_FIELDS <= record.keys() <= _FIELDS | {"belongs_to"} and _is_whole(record)):
        raise DamagedRun(f"{path} is damaged (expected the fields {', '.join(sorted(_FIELDS))}): {_AGAIN}")
    return record


def _is_whole(record: Mapping[str, Any]) -> bool:
    kinds = {"pruner": str, "parameters": dict, "spec": dict, "sha256": str, "training": dict, "belongs_to": dict}
    return all(isinstance(record[key], kind) for key, kind in kinds.items() if key in record)


def load(
    pruner: TrainedPruner, name: str, spec: ModuleSpec, folder: Path, belongs_to: Mapping[str, Any]
) -> tuple[TrainedPruner, dict[str, Any]]:
    """Bind `pruner` to its trained module in eval mode; returns it and the record of `pruner.json`.

    Raises NotTrained (exit 5) where nothing was trained, WeightsMismatch (exit 4) where the weights belong to other
    parameters, features or another language model, DamagedRun (exit 4) where a file is not as it was written.
    """
    record = None if folder.is_file() else read_record(folder)
    if record is None:
        advice = f"run `make train` first, or name the folder of another run's {RECORD} with `weights` beside the method's name"
        advice = advice if pruner.weights is None else f"`weights` must name a folder with {RECORD}"
        raise NotTrained(f"expected trained weights of {name} in {folder}, there are none: {advice}")
    differing = _differing(record, name, pruner, spec, belongs_to)
    if differing:
        raise WeightsMismatch(
            f"the weights in {folder} were trained for another pruner: {'; '.join(differing)}; undo the change, name the "
            "folder of other weights with `weights` beside the method's name, or run `make train ARGS=--overwrite`"
        )
    data = read_bytes(folder / WEIGHTS, _AGAIN)
    if data is None or hashlib.sha256(data).hexdigest() != record["sha256"]:
        came = "it is missing" if data is None else "it is not the one that pruner.json names"
        raise WeightsMismatch(f"expected the weights that were trained in {folder / WEIGHTS}, {came}: {_AGAIN}")
    module = pruner.fresh(spec, seed=0).module
    module.load_state_dict(safetensors.torch.load(data), strict=True)
    return pruner.with_module(module.requires_grad_(False).eval()).trained_in(folder), record


def _differing(
    record: Mapping[str, Any], name: str, pruner: TrainedPruner, spec: ModuleSpec, belongs_to: Mapping[str, Any]
) -> list[str]:
    """What the weights belong to that is not so here; labels of one method may differ in what stands behind `@`."""
    now: dict[str, Any] = {"pruner": _method(name), "parameters": pruner.parameters(), "spec": asdict(spec)}
    now = json.loads(json.dumps(now)) | dict(belongs_to)
    old = {"pruner": _method(record["pruner"]), "parameters": record["parameters"], "spec": record["spec"]}
    old |= record.get("belongs_to", {})
    if "belongs_to" not in record:  # an earlier version, which recorded of all that only the language model
        old |= {"language_model": record["training"].get("identity", {}).get("language_model")}
        now.pop("features")
    both = now.keys() & old.keys()
    return differences({key: old[key] for key in both}, {key: now[key] for key in both})


def _method(label: str) -> str:
    return label.partition("@")[0]


def _state(pruner: TrainedPruner) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in pruner.module.state_dict().items()}
