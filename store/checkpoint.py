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
import ssl
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from torch import Tensor

from store.errors import CheckpointMissing, CustomCode, DamagedCheckpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_SECONDS = 3.0
_SAID = 300
"""Characters of another library's message that are repeated."""
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


def load_config(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The checkpoint's transformers config.

    Raises CheckpointMissing (exit 5) if it is neither a folder nor in the cache, CustomCode (exit 2) if it brings code of
    its own and that was not asked for, DamagedCheckpoint (exit 4) if its config cannot be read.
    """
    from transformers import AutoConfig

    checkpoint_file(source, "config.json", revision)
    if trust_remote_code:
        _warn_of_code(source)
    with stock_reading(source, "a config.json"):
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


@contextmanager
def stock_reading(source: str, what: str) -> Generator[None, None, None]:
    """What transformers raises while it reads a part of a checkpoint, said in one sentence."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StrictDataclassError, SafetensorError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the checkpoint's
        said = " ".join(str(error).split())
        if "trust_remote_code" in said:
            raise CustomCode(
                f"{source} brings code of its own, which was not run: read it, and if you trust it with everything that you "
                "may do here, set model.trust_remote_code: true (--model.trust-remote-code true)"
            ) from None
        raise DamagedCheckpoint(
            f"expected {what} in {source} that transformers can read, it says: {said:.{_SAID}}; correct it, or download the "
            "checkpoint again"
        ) from None


@cache
def _warn_of_code(source: str) -> None:
    _log.warning("warning: model.trust_remote_code is on, code that %s brings may be run", source)


def checkpoint_file(source: str, name: str, revision: str | None = None) -> Path:
    """A local path of one file of a checkpoint, downloaded if it is on the hub and that can be reached."""
    found = optional_checkpoint_file(source, name, revision)
    if found is not None:
        return found
    if Path(source).is_dir():
        raise CheckpointMissing(
            f"expected {name} in the checkpoint folder {source}, it is not there: correct its path in the config"
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
    if folder.is_file():
        raise CheckpointMissing(
            f"expected a checkpoint folder at {source}, it is a file: name the folder that holds config.json and {SINGLE}"
        )
    if folder.is_absolute() or source.startswith("."):
        raise CheckpointMissing(
            f"expected a checkpoint folder at {source}, there is none: correct its path in the config"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        return Path(hf_hub_download(source, name, revision=revision, local_files_only=not _hub_answers()))
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError):
        return None
    except HFValidationError:
        raise CheckpointMissing(f"{source!r} is neither a folder nor a hub id: correct it in the config") from None


@cache
def _hub_answers() -> bool:
    """Whether the hub can be reached, asked once and briefly: its own client goes on trying for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()  # noqa: S310 (an https address)
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # its client may know other certificates
    except OSError:
        return False
    return True


def weight_files(source: str, revision: str | None = None) -> tuple[dict[str, str], Callable[[str], Path]]:
    """Raw tensor name -> file that holds it, and a function that fetches such a file."""

    def fetch(name: str) -> Path:
        return checkpoint_file(source, name, revision)

    index = optional_checkpoint_file(source, INDEX, revision)
    if index is not None:
        return _weight_map(index), fetch
    if optional_checkpoint_file(source, SINGLE, revision) is None:
        _refuse_pickle(source, revision)
    path = fetch(SINGLE)
    with _reading(path), safe_open(path, "pt") as file:
        return dict.fromkeys(file.keys(), SINGLE), fetch


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


def _refuse_pickle(source: str, revision: str | None) -> None:
    """Say why weights that are there are not read."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(source)
    if folder.is_dir():
        found = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    else:
        names = ("pytorch_model.bin", "pytorch_model.bin.index.json")
        found = [name for name in names if isinstance(try_to_load_from_cache(source, name, revision=revision), str)]
    if found:
        raise CheckpointMissing(
            f"expected {SINGLE} in {source}, found {found[0]}: a pickle can run any code when it is opened, so it is never "
            "read; take a revision with safetensors, or convert it where it can do no harm, with "
            "`from_pretrained(…).save_pretrained(…)` of its class in transformers"
        )


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
    files, fetch = weight_files(source, revision)
    by_file: dict[str, list[str]] = {}
    for raw, file in files.items():
        if canonical(raw).startswith(wanted):
            by_file.setdefault(file, []).append(raw)
    for name in sorted(by_file):
        path = fetch(name)
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


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except SafetensorError as error:
        said = " ".join(str(error).split())
        raise DamagedCheckpoint(
            f"{path} is not a safetensors file that can be read ({said:.{_SAID}}): download the checkpoint again"
        ) from None
