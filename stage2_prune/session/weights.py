"""Save and load a trained pruner: `weights.safetensors`, and `pruner.json`, which says what these weights belong to.

    <run_dir>/pruner/<name>/, or the folder that a method's `weights` names
      weights.safetensors   the module's state dict
      pruner.json           schema, name, parameters, module spec, sha256 of the weights, what they were trained with; sealed

The JSON is written last and names the weights by content, so that a pair of files torn by a crash is noticed.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from torch import Tensor, nn

from configs.counted import counted
from configs.errors import TRAIN, typed
from configs.files.atomic import write_atomically
from configs.progress import say_once
from stage2_prune.errors import DamagedRun, NotTrained, WeightsMismatch
from stage2_prune.pruning.pruner import ModuleSpec, TrainedPruner
from stage2_prune.session.features import Features
from stage2_prune.session.identity import differences, in_both, require_same
from stage2_prune.session.sealed import read_bytes, read_object, write_object
from store.checkpoint.weights import is_finite
from store.questions.fields import first_few

WEIGHTS = "weights.safetensors"
RECORD = "pruner.json"
_FIELDS = {"schema", "pruner", "parameters", "spec", "sha256", "training"}
NUMERIC = "numeric"
"""The part of what weights belong to that may differ: versions and machines, which decide the bits of features."""
_SHOWN = 3
"""The largest number of numeric differences that a note names."""
_NAMES = {"checkpoint", "revision"}
"""Fields of a fingerprint that only name a checkpoint; other fields hold the digests of its weights."""


def folder(run_dir: Path, label: str, pruner: TrainedPruner) -> Path:
    """Return the folder of a pruner's weights: the folder that `weights` names, or else the run's own folder for `label`."""
    return pruner.weights or run_dir / "pruner" / label


def belongings(features: Features, pruner: TrainedPruner, language_model: str | None) -> dict[str, Any]:
    """Describe what weights belong to, as JSON: the features that the pruner looks at, and the language model it serves.

    The images and questions of the training are no part of the description.

    Args:
        features: the opened store.
        pruner: the pruner whose weights are described.
        language_model: the digest of the language model's weights; None if no model is at hand to compare.
    """
    names = pruner.needs | {features.source}
    numeric = {name: fingerprint["numeric"] for name, fingerprint in features.fingerprints(names).items()}
    described: dict[str, Any] = {"features": semantics(features, names), NUMERIC: json.loads(json.dumps(numeric))}
    return described if language_model is None else described | {"language_model": language_model}


def semantics(features: Features, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the semantic fingerprints of some arrays, as JSON, without the names under which a checkpoint is known."""
    semantic = {
        name: {key: value for key, value in fingerprint["semantic"].items() if key not in _NAMES}
        for name, fingerprint in features.fingerprints(names).items()
    }
    return json.loads(json.dumps(semantic))


def save(
    pruner: TrainedPruner,
    spec: ModuleSpec,
    folder: Path,
    belongs_to: Mapping[str, Any],
    training: Mapping[str, Any],
) -> str:
    """Write the module of `pruner` and the record of what it belongs to.

    Args:
        pruner: the pruner, with its trained module.
        spec: what the module's shape depends on.
        folder: the folder to write to.
        belongs_to: the result of `belongings`.
        training: anything that JSON holds, such as the chosen epoch, the validation accuracy and the resolved config.

    Returns:
        The sha256 of the weights file.
    """
    data = safetensors.torch.save(_state(pruner))
    digest = hashlib.sha256(data).hexdigest()
    record = {
        "schema": 1,
        "pruner": pruner.file.stem,
        "parameters": pruner.parameters(),
        "spec": asdict(spec),
        "sha256": digest,
        "belongs_to": dict(belongs_to),
        "training": dict(training),
    }
    write_atomically(folder / WEIGHTS, data)
    write_object(folder / RECORD, record)
    return digest


def read_record(folder: Path, named: bool = False) -> dict[str, Any] | None:
    """Read `pruner.json`; None if there is no such file. Raises DamagedRun (exit 4) if the file is damaged.

    Args:
        folder: the folder of the weights.
        named: whether the config names this folder.
    """
    path = folder / RECORD
    remedy = _again(folder, named)
    record = read_object(path, remedy)
    if record is not None and not (_FIELDS <= record.keys() <= _FIELDS | {"belongs_to"} and _is_whole(record)):
        raise DamagedRun(f"{path} is damaged (expected the fields {', '.join(sorted(_FIELDS))}): {remedy}")
    return record


def _again(folder: Path, named: bool) -> str:
    """Say how to replace damaged weights; `train` writes deleted weights again, but not into a folder that the config names."""
    copied = "copy the folder that `train` wrote again"
    return copied if named else f"{copied}, or delete the whole folder {folder} and run {TRAIN}"


def _is_whole(record: Mapping[str, Any]) -> bool:
    kinds = {"pruner": str, "parameters": dict, "spec": dict, "sha256": str, "training": dict, "belongs_to": dict}
    return all(isinstance(record[key], kind) for key, kind in kinds.items() if key in record)


def load(
    pruner: TrainedPruner, name: str, spec: ModuleSpec, folder: Path, belongs_to: Mapping[str, Any]
) -> tuple[TrainedPruner, dict[str, Any]]:
    """Bind `pruner` to its trained module, in eval mode.

    Args:
        pruner: the pruner as the config describes it.
        name: the pruner's name in the config.
        spec: what the module's shape depends on.
        folder: the folder of the weights.
        belongs_to: the result of `belongings`, to compare with the record.

    Returns:
        The bound pruner and the record in `pruner.json`.

    Raises:
        NotTrained: (exit 5) if nothing was trained.
        WeightsMismatch: (exit 4) if the weights belong to other parameters, other features or another language model.
        DamagedRun: (exit 4) if a file is damaged.
    """
    record = None if folder.is_file() else read_record(folder, pruner.weights is not None)
    if record is None:
        advice = (
            f"run {TRAIN} first, or name the folder of another run's {RECORD} with `weights` beside the method's name"
        )
        advice = advice if pruner.weights is None else f"`weights` must name a folder with {RECORD}"
        raise NotTrained(f"expected trained weights of {name} in {folder}, there are none: {advice}")
    require_same(
        f"the weights in {folder} were trained for another pruner",
        *_records(record, pruner, spec, belongs_to),
        remedy="undo the change, name the folder of other weights with `weights` beside the method's name, or run "
        f"{typed('train', '--overwrite')}",
        error=WeightsMismatch,
    )
    remedy = _again(folder, pruner.weights is not None)
    tensors = read_tensors(folder, record, remedy)
    module = pruner.fresh(spec, seed=0).module
    if (problem := _misfit(tensors, module)) is not None:
        raise WeightsMismatch(f"expected the weights of {name} in {folder / WEIGHTS}, {problem}: {remedy}")
    module.load_state_dict(tensors, strict=True)
    _note_numeric(folder, record, belongs_to)
    return pruner.with_module(module.requires_grad_(False).eval()).trained_in(folder), record


def read_tensors(folder: Path, record: Mapping[str, Any], remedy: str) -> dict[str, Shaped[Tensor, "..."]]:
    """Read the weights that a record names; nothing but safetensors with finite values is read.

    Raises:
        WeightsMismatch: (exit 4) for other weights than those of the record, and for NaN or infinity, naming the tensor.
        DamagedRun: (exit 4) for another kind of file. `remedy` ends the messages.
    """
    path = folder / WEIGHTS
    data = read_bytes(path, remedy)
    if data is None or hashlib.sha256(data).hexdigest() != record["sha256"]:
        problem = "it is missing" if data is None else "it is not the one that pruner.json names"
        raise WeightsMismatch(f"expected the weights that were trained in {path}, {problem}: {remedy}")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise DamagedRun(f"{path} is not a safetensors file that can be read ({said:.200}): {remedy}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor.to(torch.float64)):
            raise WeightsMismatch(f"expected finite weights in {path}, {name:.200} has NaN or infinity: {remedy}")
    return tensors


def _note_numeric(folder: Path, record: Mapping[str, Any], belongs_to: Mapping[str, Any]) -> None:
    """Say once how the bits of features may differ from those of the training; earlier versions did not record it."""
    recorded = record.get("belongs_to", {})
    if NUMERIC in recorded and (changed := differences(recorded[NUMERIC], belongs_to[NUMERIC])):
        say_once(
            f"note: the weights in {folder} were trained on features of another machine or other versions "
            f"({'; '.join(changed[:_SHOWN])}{'; …' * (len(changed) > _SHOWN)}): last bits of scores may differ"
        )


def _misfit(tensors: Mapping[str, Shaped[Tensor, "..."]], module: nn.Module) -> str | None:
    """Say how tensors differ from those of a module in name, shape or dtype; None if they fit."""
    wanted = module.state_dict()
    if lacking := sorted(wanted.keys() - tensors.keys()):
        return f"it lacks {first_few(lacking)}"
    if foreign := sorted(tensors.keys() - wanted.keys()):
        return f"it holds {counted(len(foreign), 'tensor')} too many ({first_few(foreign):.200})"
    for name, tensor in wanted.items():
        found = tensors[name]
        if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            was, now = (f"{tuple(one.shape)} in {str(one.dtype).removeprefix('torch.')}" for one in (tensor, found))
            return f"{name} is {now}, not {was}"
    return None


def _records(
    record: Mapping[str, Any], pruner: TrainedPruner, spec: ModuleSpec, belongs_to: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the weights were trained for and what they are loaded for, as two records to compare.

    A method is named by its file, because runs may call it by other labels; earlier versions recorded a label, in which
    parameters stand behind `@`.
    """
    now: dict[str, Any] = {"pruner": pruner.file.stem, "parameters": pruner.parameters(), "spec": asdict(spec)}
    now = json.loads(json.dumps(now)) | {key: value for key, value in belongs_to.items() if key != NUMERIC}
    old = {"pruner": record["pruner"].partition("@")[0], "parameters": record["parameters"], "spec": record["spec"]}
    old |= record.get("belongs_to", {})
    if "belongs_to" not in record:  # an earlier version, which recorded only the language model
        old |= {"language_model": record["training"].get("identity", {}).get("language_model")}
        now.pop("features")
    return in_both(old, now)


def _state(pruner: TrainedPruner) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in pruner.module.state_dict().items()}
