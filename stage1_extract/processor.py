"""The checkpoint's own image processor, always on Pillow: other backends resize to other pixels."""

import json
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from store.checkpoint import checkpoint_file, optional_checkpoint_file

BACKEND = "pil"


class ImageProcessor:
    """One RGB image -> pixel values, independent of any batch; `options` are laid over the checkpoint's settings."""

    def __init__(self, source: str, revision: str | None, **options: Any) -> None:
        if optional_checkpoint_file(source, "processor_config.json", revision) is None:
            checkpoint_file(source, "preprocessor_config.json", revision)
        self.stock: Any = AutoImageProcessor.from_pretrained(source, revision=revision, backend=BACKEND)
        self.options = options

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that decides which pixels the tower sees."""
        config = json.loads(self.stock.to_json_string())
        return {
            "class": type(self.stock).__name__,
            "backend": BACKEND,
            "exif": "ignored",
            "config": config | self.options,
        }

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Every tensor has a leading image axis of 1."""
        return dict(self.stock(images=[image], return_tensors="pt", **self.options))
