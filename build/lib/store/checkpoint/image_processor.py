"""A checkpoint's own image processor, always on Pillow: other backends resize to other pixels."""

import json
from collections.abc import Mapping
from typing import Any

from store.checkpoint.files import checkpoint_file, optional_checkpoint_file
from store.checkpoint.opening import stock_reading
from store.errors import DamagedCheckpoint, UnsupportedProcessor

BACKEND = "pil"
FILES = ("processor_config.json", "preprocessor_config.json")


def has_image_processor(source: str, revision: str | None = None) -> bool:
    """Whether a checkpoint carries the settings of one."""
    return any(optional_checkpoint_file(source, name, revision) is not None for name in FILES)


def open_image_processor(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Open the stock processor, on Pillow whether or not torchvision is installed.

    Raises CheckpointMissing (exit 5) where there are no settings for one, CustomCode (exit 2) where it is code of the
    checkpoint's own and that was not asked for, UnsupportedProcessor (exit 2) where it exists on torchvision alone.
    """
    from transformers import AutoImageProcessor
    from transformers.image_processing_backends import TorchvisionBackend

    if not has_image_processor(source, revision):
        checkpoint_file(source, FILES[-1], revision)
    stock: Any = AutoImageProcessor
    only_torchvision = UnsupportedProcessor(
        f"expected an image processor that runs on Pillow in {source}, transformers has its kind for torchvision alone, "
        "which resizes to other pixels: take a checkpoint whose image processor has a class for Pillow"
    )
    try:
        with stock_reading(source, "settings of an image processor"):
            opened = stock.from_pretrained(
                source, revision=revision, backend=BACKEND, trust_remote_code=trust_remote_code
            )
    except DamagedCheckpoint as error:
        if "torchvision" in str(error):  # it is not installed; if it were, it would be taken in place of Pillow
            raise only_torchvision from None
        raise
    if isinstance(opened, TorchvisionBackend):
        raise only_torchvision
    return opened


def processor_fingerprint(stock: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides which pixels the tower sees; `options` are laid over the checkpoint's settings."""
    config: dict[str, Any] = json.loads(stock.to_json_string())
    return {"class": type(stock).__name__, "backend": BACKEND, "exif": "ignored", "config": config | dict(options)}
