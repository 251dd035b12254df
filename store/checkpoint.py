# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (torch, transformers and safetensors are typed in part)
"""The key layouts of LLaVA checkpoints, and loading a part of one without touching the rest.

Three layouts are in circulation: the hub's (`vision_tower.vision_model.*`, `language_model.model.*`), the runtime names
of transformers 4.52-4.57 (`model.vision_tower.vision_model.*`, `lm_head.*`), and what transformers 5 saves for a fresh
model (`vision_tower.encoder.*`). `canonical` maps them all to one.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.errors import CheckpointMissing, StoreError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
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


def load_config(source: str, revision: str | None = None) -> Any:
    """The checkpoint's transformers config; CheckpointMissing if it is neither a folder nor in the cache."""
    from transformers import AutoConfig

    checkpoint_file(source, "config.json", revision)
    return AutoConfig.from_pretrained(source, revision=revision)


def checkpoint_file(source: str, name: str, revision: str | None = None) -> Path:
    """A local path of one file of a checkpoint, downloaded if it is on the hub and that can be reached."""
    found = optional_checkpoint_file(source, name, revision)
    if found is not None:
        return found
    if Path(source).is_dir():
        raise CheckpointMissing(
            f"expected {name} in the checkpoint folder {source}, it is not there: check model.checkpoint"
        )
    at = f" --revision {revision}" if revision else ""
    raise CheckpointMissing(
        f"{source} is neither a folder nor in the Hugging Face cache ({name} not found), and the hub cannot be reached: "
        f"run `hf download {source}{at}` on a machine with a network, or set HF_HOME to a cache that has it"
    )


def optional_checkpoint_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """As `checkpoint_file`, None where the checkpoint has no such file or cannot be had."""
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if folder.is_absolute() or source.startswith("."):
        raise CheckpointMissing(f"expected a checkpoint folder at {source}, there is none: check model.checkpoint")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
    except HFValidationError:
        raise CheckpointMissing(f"{source!r} is neither a folder nor a hub id: check model.checkpoint") from None


def weight_files(source: str, revision: str | None = None) -> tuple[dict[str, str], Callable[[str], Path]]:
    """Raw tensor name -> file that holds it, and a function that fetches such a file."""

    def fetch(name: str) -> Path:
        return checkpoint_file(source, name, revision)

    index = optional_checkpoint_file(source, INDEX, revision)
    if index is not None:
        return dict(json.loads(index.read_text())["weight_map"]), fetch
    with _open(fetch(SINGLE)) as file:
        return dict.fromkeys(file.keys(), SINGLE), fetch


def load_tensors(
    source: str, prefixes: Iterable[str], dtype: torch.dtype | None = None, revision: str | None = None
) -> dict[str, Shaped[Tensor, "..."]]:
    """Tensors whose canonical name begins with one of `prefixes`; only the files that hold them are opened."""
    wanted = tuple(prefixes)
    files, fetch = weight_files(source, revision)
    by_file: dict[str, list[str]] = {}
    for raw, file in files.items():
        if canonical(raw).startswith(wanted):
            by_file.setdefault(file, []).append(raw)
    tensors: dict[str, Tensor] = {}
    for name in sorted(by_file):
        with _open(fetch(name)) as file:
            for raw in by_file[name]:
                tensor = file.get_tensor(raw)
                tensors[canonical(raw)] = tensor.to(dtype) if dtype is not None else tensor
    return tensors


@contextmanager
def quiet_loading() -> Generator[None, None, None]:
    """Inside, transformers does not report which half of a checkpoint is left aside, and draws bars on terminals only."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def weights_digest(tensors: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """sha256 over names, dtypes, shapes and bytes, in the order of the names; the same for every key layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise StoreError(
            f"{path} is not a readable safetensors file ({error}): download the checkpoint again"
        ) from None
