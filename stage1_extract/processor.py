"""One RGB image -> pixel values, by the checkpoint's own image processor."""

from typing import Any

import torch
from PIL import Image

from store.image_processor import open_image_processor, processor_fingerprint


class ImageProcessor:
    """Independent of any batch; `options` are laid over the checkpoint's settings."""

    def __init__(self, source: str, revision: str | None, **options: Any) -> None:
        self.stock = open_image_processor(source, revision)
        self.options = options

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See store/image_processor.py."""
        return processor_fingerprint(self.stock, self.options)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Every tensor has a leading image axis of 1."""
        return dict(self.stock(images=[image], return_tensors="pt", **self.options))
