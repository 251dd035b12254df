"""A checkpoint's own image processor, which always runs on Pillow because other backends resize to other pixels."""

import json
from collections.abc import Mapping
from typing import Any

from store.checkpoint.files import checkpoint_file, optional_checkpoint_file
from store.checkpoint.opening import stock_reading
from store.errors import DamagedCheckpoint, UnsupportedProcessor

BACKEND = "pil"
FILES = ("processor_config.json", "preprocessor_config.json")


def has_image_processor(source: str, revision: str | None = None) -> bool:
    """Check whether a checkpoint has the settings of an image processor."""
    return any(optional_checkpoint_file(source, name, revision) is not None for name in FILES)


def open_image_processor(source: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Open the stock image processor of a checkpoint, on Pillow whether or not torchvision is installed.

    Raises:
        CheckpointMissing: (exit 5) The checkpoint has no settings of an image processor.
        CustomCode: (exit 2) The processor is code of the checkpoint's own, and `trust_remote_code` is off.
        UnsupportedProcessor: (exit 2) The processor exists for torchvision alone.

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
        if "torchvision" in str(error):  # not installed; if it were, stock code would take it in place of Pillow
            raise only_torchvision from None
        raise
    if isinstance(opened, TorchvisionBackend):
        raise only_torchvision
    return opened


def processor_fingerprint(stock: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that decides which pixels the tower sees; `options` win over the checkpoint's settings."""
    config: dict[str, Any] = json.loads(stock.to_json_string())
    return {"class": type(stock).__name__, "backend": BACKEND, "exif": "ignored", "config": config | dict(options)}
