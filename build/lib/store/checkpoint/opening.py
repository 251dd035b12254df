"""Opening the config of a checkpoint, and keeping stock code's words short while it loads."""

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

from safetensors import SafetensorError

from store.checkpoint.files import checkpoint_file, names_of, optional_checkpoint_file
from store.checkpoint.kinds import (
    ADAPTER,
    QUANTISED_FILES,
    read_settings,
    refuse_adapter,
    refuse_original,
    refuse_quantised,
)
from store.errors import CustomCode, DamagedCheckpoint

_SAID = 300
"""Characters of another library's message that are repeated."""
_log = logging.getLogger(__name__)


def load_config(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Open the checkpoint's transformers config, if the checkpoint is of a kind that can be read.

    Raises CheckpointMissing (exit 5) if it is neither a folder nor in the cache, UnusableCheckpoint (exit 5) if it is an
    adapter, quantised or in another layout, CustomCode (exit 2) if it brings code of its own and that was not asked for,
    DamagedCheckpoint (exit 4) if its config cannot be read.
    """
    from transformers import AutoConfig

    _refuse_other_kinds(source, revision)
    if trust_remote_code:
        _warn_of_code(source)
    with stock_reading(source, "a config.json"):
        stock: Any = AutoConfig
        return stock.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)


def _refuse_other_kinds(source: str, revision: str | None) -> None:
    """Raise UnusableCheckpoint (exit 5) for what the files beside the weights say, before any weight is read."""
    names = names_of(source, revision)
    found = {
        name: read_settings(optional_checkpoint_file(source, name, revision))
        for name in (ADAPTER, *QUANTISED_FILES)
        if name in names
    }
    refuse_adapter(source, names, found.pop(ADAPTER, {}))
    settings = read_settings(checkpoint_file(source, "config.json", revision))
    refuse_original(source, settings)
    refuse_quantised(source, settings, found)


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
