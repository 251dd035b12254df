# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""The key layouts of LLaVA checkpoints, and loading a part of one without touching the rest.

Three layouts are in circulation: the hub's (`vision_tower.vision_model.*`, `language_model.model.*`), the runtime names
of transformers 4.52-4.57 (`model.vision_tower.vision_model.*`, `lm_head.*`), and what transformers 5 saves for a fresh
model (`vision_tower.encoder.*`). `canonical` maps them all to one.
"""

import hashlib
import json
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
from store.checkpoint.kinds import (
    read_settings,
    refuse_kinds_of_numbers,
    refuse_names,
    refuse_shards_of_ranks,
    refuse_without,
)
from store.errors import DamagedCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SAID = 300
"""Characters of another library's message that are repeated."""
_ENDINGS = (".safetensors", ".safetensors.index.json")
_log = logging.getLogger(__name__)
_RULES = (
    (re.compile(r"^model\.(?=(vision_tower|multi_modal_projector|language_model)\.)"), ""),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "language_model."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
)


def canonical(key: str) -> str:
    """The one name of a tensor, whichever layout its checkpoint uses.

    >>> canonical("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias")
    'vision_tower.encoder.layers.0.mlp.fc1.bias'
    """
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    return key


@dataclass(frozen=True)
class WeightFiles:
    """Which file of a checkpoint holds which tensor; nothing is read or fetched before it is asked for."""

    source: str
    revision: str | None
    name: str
    """What stock loading begins with: a safetensors file, or the index of several."""
    file_of: Mapping[str, str]
    """By the tensors' names on disk."""

    def fetch(self, file: str) -> Path:
        """A local path of one of the files, downloaded if need be."""
        return checkpoint_file(self.source, file, self.revision)


def weight_files(source: str, revision: str | None = None) -> WeightFiles:
    """Choose the weights of a checkpoint as stock `from_pretrained` does, for both stages.

    Stock takes the file that config.json names as `transformers_weights`, or else model.safetensors, or else the index.

    Raises CheckpointMissing (exit 5) where there are none, UnusableCheckpoint (exit 5) where they are of a kind that
    cannot be read as they are, DamagedCheckpoint (exit 4) where files and index do not fit together.
    """
    names = names_of(source, revision)
    refuse_shards_of_ranks(source, names)
    name = _chosen(source, revision)
    if name is None:
        refuse_without(source, SINGLE, names)
        name = SINGLE  # its own message says what to fetch
    path = checkpoint_file(source, name, revision)
    listed = _weight_map(path) if name.endswith(".index.json") else dict.fromkeys(_kinds_in(path), name)
    weights = WeightFiles(source, revision, name, _found_in(source, revision, listed))
    refuse_names(source, weights.file_of)
    return weights


def require_all_files(source: str, revision: str | None = None) -> None:
    """Demand every file of a folder's weights, those of the language half too, which `extract` itself does not open.

    A hub repository is left alone: what stage 1 does not read of it is downloaded by stage 2.
    """
    if Path(source).is_dir():
        for file in sorted(set(weight_files(source, revision).file_of.values())):
            checkpoint_file(source, file, revision)


def _chosen(source: str, revision: str | None) -> str | None:
    settings = read_settings(optional_checkpoint_file(source, "config.json", revision))
    named = settings.get("transformers_weights")
    if named is not None:
        if not isinstance(named, str) or Path(named).name != named or not named.endswith(_ENDINGS):
            raise DamagedCheckpoint(
                f"expected a safetensors file or an index beside it as transformers_weights in config.json of {source}, got "
                f"{named!r:.{_SAID}}: correct it"
            )
        return named
    present = [one for one in (SINGLE, INDEX) if optional_checkpoint_file(source, one, revision) is not None]
    if len(present) > 1:
        _warn_of_two(source)
    return present[0] if present else None


@cache
def _warn_of_two(source: str) -> None:
    _log.warning(
        "warning: %s holds two sets of weights, %s and the files that %s lists: the first is read, as transformers does; "
        "remove the one that is not meant", source, SINGLE, INDEX,
    )  # fmt: skip


def _found_in(source: str, revision: str | None, listed: Mapping[str, str]) -> dict[str, str]:
    """Tensor -> file, as the files themselves say it wherever they are at hand; stock reads every tensor of each.

    Files of a hub repository that were not downloaded yet are believed to hold what the index says.
    """
    found: dict[str, str] = {}
    for file in sorted(set(listed.values())):
        path = local_file(source, file, revision)
        if path is None:
            continue
        kinds = _kinds_in(path)
        refuse_kinds_of_numbers(source, kinds)
        for name in kinds.keys() & found.keys():
            raise DamagedCheckpoint(
                f"expected each tensor once in {source}, {name} is in {found[name]} and in {file}: remove the file that does "
                "not belong there, or download the checkpoint again"
            )
        found |= dict.fromkeys(kinds, file)
    return {**listed, **found}


def _kinds_in(path: Path) -> dict[str, str]:
    """The kind of number of each tensor of a safetensors file, from its header."""
    with _reading(path), safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no dict)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file; its files lie beside the index and nowhere else."""
    try:
        files: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
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
    """Tensors whose canonical name begins with one of `prefixes`; only the files that hold them are opened.

    Raises DamagedCheckpoint (exit 4) naming the tensor that cannot be read or holds NaN or infinity.
    """
    each = each_tensor(source, prefixes, revision)
    tensors = {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in each}
    require_finite(source, tensors)
    return tensors


def each_tensor(
    source: str, prefixes: Iterable[str], revision: str | None = None
) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """The same under their canonical names, one at a time, as they lie on disk."""
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
    """Raise DamagedCheckpoint (exit 4) naming the first tensor with NaN or infinity: all that it touches would be NaN."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DamagedCheckpoint(
                f"expected finite weights in {source}, {name} has NaN or infinity as {tensor.dtype}: download the "
                "checkpoint again, or choose a wider model.dtype"
            )


def weights_digest(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names; the same for every key layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except SafetensorError as error:
        said = " ".join(str(error).split())
        raise DamagedCheckpoint(
            f"{path} is not a safetensors file that can be read ({said:.{_SAID}}): download the checkpoint again"
        ) from None
