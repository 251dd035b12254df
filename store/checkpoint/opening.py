"""Opening the config of a checkpoint, and keeping the messages of stock code short while it loads."""

import copy
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

from safetensors import SafetensorError

from store.checkpoint.files import checkpoint_file, names_of, optional_checkpoint_file, states_of
from store.checkpoint.json_files import FileState, read_settings
from store.checkpoint.kinds import (
    ADAPTER,
    QUANTISED_FILES,
    refuse_adapter,
    refuse_original,
    refuse_quantised,
)
from store.errors import CustomCode, DamagedCheckpoint

_SAID = 300
"""Largest number of characters of another library's message that is repeated."""
_READ = ("config.json", ADAPTER, *QUANTISED_FILES)
"""Files that decide on what `load_config` returns; with `trust_remote_code` the checkpoint's Python files do too."""
_opened: dict[tuple[str, str | None, bool], tuple[dict[str, FileState], Any]] = {}
"""By the arguments of `load_config`: the state of the files that it read, and the config."""
_log = logging.getLogger(__name__)


def load_config(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Open the transformers config of a checkpoint, if the checkpoint is of a kind that can be read.

    A process opens each config once: a later call with the same arguments returns a copy of the config, unless the files
    that decide on it have changed since.

    Raises:
        CheckpointMissing: (exit 5) The checkpoint is neither a folder nor in the cache.
        UnusableCheckpoint: (exit 5) The checkpoint is an adapter, quantised or in another layout.
        CustomCode: (exit 2) The checkpoint brings code of its own, and `trust_remote_code` is off.
        DamagedCheckpoint: (exit 4) The config cannot be read.

    """
    arguments = source, revision, trust_remote_code
    states = _states(*arguments)
    remembered = _opened.get(arguments)
    if remembered is not None and states and remembered[0] == states:
        return copy.deepcopy(remembered[1])
    config = _open(*arguments)
    _opened[arguments] = states or _states(*arguments), config  # opening may have downloaded the files
    return copy.deepcopy(config)


def _states(source: str, revision: str | None, trust_remote_code: bool) -> dict[str, FileState]:
    """Return the state of each file that `load_config` reads and that is on this machine already, by its name."""
    return states_of(source, lambda name: name in _READ or (trust_remote_code and name.endswith(".py")), revision)


def _open(source: str, revision: str | None, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    _refuse_other_kinds(source, revision)
    if trust_remote_code:
        _warn_of_code(source)
    with stock_reading(source, "a config.json"):
        stock: Any = AutoConfig
        return stock.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


def _refuse_other_kinds(source: str, revision: str | None) -> None:
    """Raise UnusableCheckpoint (exit 5) if the files beside the weights show a kind that cannot be read; reads no weights."""
    names = names_of(source, revision)
    beside = {
        name: read_settings(optional_checkpoint_file(source, name, revision))
        for name in (ADAPTER, *QUANTISED_FILES)
        if name in names
    }
    refuse_adapter(source, names, beside.pop(ADAPTER, {}))
    settings = read_settings(checkpoint_file(source, "config.json", revision))
    refuse_original(source, settings)
    refuse_quantised(source, settings, beside)


@contextmanager
def stock_reading(source: str, what: str) -> Generator[None, None, None]:
    """Turn whatever transformers raises while it reads a part of a checkpoint into one sentence.

    Args:
        source: Folder or hub id of the checkpoint.
        what: The part that is read, with its article, such as "a tokenizer".

    Raises:
        CustomCode: (exit 2) The part is code of the checkpoint's own, which was not to be run.
        DamagedCheckpoint: (exit 4) The part cannot be read.
        OSError: The disk failed, not the checkpoint.

    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StrictDataclassError, SafetensorError,
    ) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk is at fault, not the checkpoint
        message = " ".join(str(error).split())
        if "trust_remote_code" in message:
            raise CustomCode(
                f"{source} brings code of its own, which was not run: read it, and if you trust it with everything that you "
                "may do here, set model.trust_remote_code: true (--model.trust-remote-code true)"
            ) from None
        raise DamagedCheckpoint(
            f"expected {what} in {source} that transformers can read, it says: {message:.{_SAID}}; correct it, or download "
            "the checkpoint again"
        ) from None


@cache
def _warn_of_code(source: str) -> None:
    _log.warning("warning: model.trust_remote_code is on, code that %s brings may be run", source)


@contextmanager
def quiet_loading() -> Generator[None, None, None]:
    """Silence transformers inside the block: it reports no weights that are not loaded, and shows bars on terminals only."""
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
