"""One RGB image -> pixel values, by the checkpoint's own image processor."""

from typing import Any

import torch
from PIL import Image

from stage1_extract.errors import BadImage
from store.image_processor import open_image_processor, processor_fingerprint

MAX_RESIZED_PIXELS = 50_000_000
"""Where the short edge is resized to the tower's, 1 x 20,000 pixels of 100 bytes on disk become 22 GB in memory."""


class ImageProcessor:
    """Independent of any batch; `options` are laid over the checkpoint's settings."""

    def __init__(self, source: str, revision: str | None, trust_remote_code: bool, **options: Any) -> None:
        self.stock = open_image_processor(source, revision, trust_remote_code)
        self.options = options

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See store/image_processor.py."""
        return processor_fingerprint(self.stock, self.options)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Every tensor has a leading image axis of 1; raises BadImage for one that would fill the memory."""
        self._require_bounded(image)
        return dict(self.stock(images=[image], return_tensors="pt", **self.options))

    def _require_bounded(self, image: Image.Image) -> None:
        edge = (self.stock.size or {}).get("shortest_edge")
        if not edge:
            return
        resized = edge * edge * max(image.size) // min(image.size)
        if resized > MAX_RESIZED_PIXELS:
            raise BadImage(
                "too_narrow", f"{image.width}x{image.height}, {resized:,} pixels where its short edge has {edge}"
            )
