# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""The weights of LLaVA checkpoints: their key layouts, and loading a part of a checkpoint without touching the rest.

Three layouts are in circulation: the hub's (`vision_tower.vision_model.*`, `language_model.model.*`), the runtime names
of transformers 4.52-4.57 (`model.vision_tower.vision_model.*`, `lm_head.*`), and what transformers 5 saves for a fresh
model (`vision_tower.encoder.*`). `canonical` maps them all to one.
"""

import hashlib
import logging
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.checkpoint.files import checkpoint_file, local_file, names_of, optional_checkpoint_file
from store.checkpoint.json_files import read_json, read_settings
from store.checkpoint.kinds import (
    refuse_kinds_of_numbers,
    refuse_names,
    refuse_shards_of_ranks,
    refuse_without,
)
from store.errors import DamagedCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SAID = 300
"""Largest number of characters of another library's message that is repeated."""
_ENDINGS = (".safetensors", ".safetensors.index.json")
_log = logging.getLogger(__name__)
_RULES = (
    (re.compile(r"^model\.(?=(vision_tower|multi_modal_projector|language_model)\.)"), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
)


def canonical(key: str) -> str:
    """Return the canonical name of a tensor, which is the same for every layout.

    >>> canonical("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias")
    'vision_tower.encoder.layers.0.mlp.fc1.bias'
    """
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return key


@dataclass(frozen=True)
class WeightFiles:
    """Which file of a checkpoint holds which tensor; a file is fetched only when `fetch` is called."""

    source: str
    revision: str | None
    name: str
    """The file that stock loading begins with: a safetensors file, or the index of several."""
    file_of: Mapping[str, str]
    """The file of each tensor, by the tensor's name on disk."""

    def fetch(self, file: str) -> Path:
        """Return the local path of one of the files, downloading it if necessary."""
        return checkpoint_file(self.source, file, self.revision)


def weight_files(source: str, revision: str | None = None) -> WeightFiles:
    """Choose the weights of a checkpoint as stock `from_pretrained` does, for both stages.

    Stock takes the file that config.json names as `transformers_weights`, or else model.safetensors, or else the index.

    Raises:
        CheckpointMissing: (exit 5) The checkpoint has no weights.
        UnusableCheckpoint: (exit 5) The weights are of a kind that cannot be read as it is.
        DamagedCheckpoint: (exit 4) The files and the index do not fit together.

    """
    names = names_of(source, revision)
    refuse_shards_of_ranks(source, names)
    name = _chosen(source, revision)
    if name is None:
        refuse_without(source, SINGLE, names)
        name = SINGLE  # so that `checkpoint_file` below says what to fetch
    path = checkpoint_file(source, name, revision)
    listed = _weight_map(path) if name.endswith(".index.json") else dict.fromkeys(_kinds_in(path), name)
    weights = WeightFiles(source, revision, name, _file_of_each(source, revision, listed))
    refuse_names(source, weights.file_of)
    return weights


def require_all_files(source: str, revision: str | None = None) -> None:
    """Require every file of a folder's weights, including the language half, which `extract` itself does not open.

    Raises CheckpointMissing (exit 5) naming a file that is missing. A hub repository passes unchecked, because stage 2
    downloads the files that stage 1 does not read.
    """
    if Path(source).is_dir():
        for file in sorted(set(weight_files(source, revision).file_of.values())):
            checkpoint_file(source, file, revision)


def _chosen(source: str, revision: str | None) -> str | None:
    """Return the file that stock loading begins with; None where the checkpoint has none of its candidates."""
    settings = read_settings(optional_checkpoint_file(source, "config.json", revision))
    named = settings.get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named or not named.endswith(_ENDINGS):
            raise DamagedCheckpoint(
                f"expected a safetensors file or an index beside it as transformers_weights in config.json of {source}, got "
                f"{named!r:.{_SAID}}: correct it"
            )
        return named
    present = [name for name in (SINGLE, INDEX) if optional_checkpoint_file(source, name, revision) is not None]
    if len(present) > 1:
        _warn_of_two(source)
    return present[0] if present else None


@cache
def _warn_of_two(source: str) -> None:
    _log.warning(
        "warning: %s holds two sets of weights, %s and the files that %s lists: the first is read, as transformers does; "
        "remove the one that is not meant", source, SINGLE, INDEX,
    )  # fmt: skip


def _file_of_each(source: str, revision: str | None, listed: Mapping[str, str]) -> dict[str, str]:
    """Return the file of each tensor, read from the files' own headers, because stock loading reads every tensor of a file.

    For files of a hub repository that were not downloaded yet, the index (`listed`) is believed.
    """
    read: dict[str, str] = {}
    for file in sorted(set(listed.values())):
        path = local_file(source, file, revision)
        if path is None:
            continue
        kinds = _kinds_in(path)
        refuse_kinds_of_numbers(source, kinds)
        for name in kinds.keys() & read.keys():
            raise DamagedCheckpoint(
                f"expected each tensor once in {source}, {name} is in {read[name]} and in {file}: remove the file that does "
                "not belong there, or download the checkpoint again"
            )
        read |= dict.fromkeys(kinds, file)
    return {**listed, **read}


def _kinds_in(path: Path) -> dict[str, str]:
    """Read the kind of number of each tensor from the header of a safetensors file."""
    with _reading(path), safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)


def _weight_map(index: Path) -> dict[str, str]:
    """Read the file of each tensor from an index; DamagedCheckpoint (exit 4) for files that do not lie beside the index."""
    try:
        files: Any = read_json(index)["weight_map"]
        strange = [name for name in files.values() if not name.endswith(".safetensors") or Path(name).name != name]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"expected a weight_map of tensor and file names in {index} ({type(error).__name__}): download it again"
        ) from None
    if strange:
        raise DamagedCheckpoint(
            f"expected safetensors files beside {index}, it names {strange[0]!r:.{_SAID}}: correct it"
        )
    return dict(files)


def load_tensors(
    source: str, prefixes: Iterable[str], dtype: torch.dtype | None = None, revision: str | None = None
) -> dict[str, Shaped[Tensor, "..."]]:
    """Load the tensors whose canonical names begin with one of `prefixes`; only the files that hold them are opened.

    Returns the tensors by canonical name. Raises DamagedCheckpoint (exit 4) naming the file that cannot be read, or the
    tensor that holds NaN or infinity.
    """
    each = each_tensor(source, prefixes, revision)
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in each}
    require_finite(source, tensors)
    return tensors


def each_tensor(
    source: str, prefixes: Iterable[str], revision: str | None = None
) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Yield the tensors that `load_tensors` loads one at a time, in the dtype that they have on disk."""
    wanted = tuple(prefixes)
    weights = weight_files(source, revision)
    by_file: dict[str, list[str]] = {}
    for raw, file in weights.file_of.items():
        if canonical(raw).startswith(wanted):
            by_file.setdefault(file, []).append(raw)
    for name in sorted(by_file):
        path = weights.fetch(name)
        with _reading(path), safe_open(path, "pt") as file:
            for raw in by_file[name]:
                yield canonical(raw), file.get_tensor(raw)


def require_finite(source: str, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Raise DamagedCheckpoint (exit 4) naming the first tensor with NaN or infinity, which would spread to every result."""
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise DamagedCheckpoint(
                f"expected finite weights in {source}, {name} has NaN or infinity as {tensor.dtype}: download the "
                "checkpoint again, or choose a wider model.dtype"
            )


@torch.no_grad()
def is_finite(tensor: Shaped[Tensor, "..."]) -> bool:
    """Return whether a tensor holds no NaN and no infinity.

    NaN and infinity both reach the least or the largest value, and finding these two takes a fortieth of `isfinite`'s time.
    """
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def weights_digest(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes, by name: the same digest for every key layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    """Turn an error of safetensors inside the block into DamagedCheckpoint (exit 4), which names the file."""
    try:
        yield
    except SafetensorError as error:
        message = " ".join(str(error).split())
        raise DamagedCheckpoint(
            f"{path} is not a safetensors file that can be read ({message:.{_SAID}}): download the checkpoint again"
        ) from None
