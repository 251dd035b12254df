"""One RGB image -> pixel values, by the checkpoint's own image processor."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stage1_extract.errors import BadImage, UnsupportedModel
from store.checkpoint.image_processor import open_image_processor, processor_fingerprint

MAX_RESIZED_PIXELS = 50_000_000
"""Where the short edge is resized to the tower's, 1 x 20,000 pixels of 100 bytes on disk become 22 GB in memory."""

TRIED_SIZES = ((64, 64), (96, 64), (64, 96), (700, 500))
"""Widths and heights of the blank images on which a processor or a model is tried out."""

MEASURED_SIZES = 4096
"""Sizes of images whose areas are remembered, 2 kB each."""


class ImageProcessor:
    """Independent of any batch; `options` are laid over the checkpoint's settings."""

    def __init__(self, source: str, revision: str | None, trust_remote_code: bool, **options: Any) -> None:
        self.stock = open_image_processor(source, revision, trust_remote_code)
        self.options = options

    @property
    def fingerprint(self) -> dict[str, Any]:
        """See store/checkpoint/image_processor.py."""
        return processor_fingerprint(self.stock, self.options)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Every tensor has a leading image axis of 1; raises BadImage for one that would fill the memory."""
        self._require_bounded(image)
        return dict(self.stock(images=[image], return_tensors="pt", **self.options))

    def pixels(self) -> tuple[int, int]:
        """Height and width of what the tower sees, tried out on images of several shapes.

        Raises UnsupportedModel where they differ from image to image: a store has one number of patches.
        """
        sizes = {tuple(self(Image.new("RGB", size))["pixel_values"].shape) for size in TRIED_SIZES}
        shape = next(iter(sizes))
        if len(sizes) == 1 and len(shape) == 4 and shape[:2] == (1, 3):
            return shape[2], shape[3]
        found = ", ".join("x".join(map(str, one)) for one in sorted(sizes))
        raise UnsupportedModel(
            "expected an image processor that makes one picture of one size of every image, (1, 3, height, width), this one "
            f"makes {found}: set do_resize and do_center_crop (or do_pad) in the checkpoint's preprocessor_config.json"
        )

    def _require_bounded(self, image: Image.Image) -> None:
        edge = (self.stock.size or {}).get("shortest_edge")
        if not edge:
            return
        resized = edge * edge * max(image.size) // min(image.size)
        if resized > MAX_RESIZED_PIXELS:
            raise BadImage(
                "too_narrow", f"{image.width}x{image.height}, {resized:,} pixels where its short edge has {edge}"
            )


class ImageArea:
    """Which part of what the tower sees is image, and which is padding: tried out, whatever the processor does."""

    def __init__(
        self, processor: Callable[[Image.Image], Mapping[str, Tensor]], grid: tuple[int, int], patch_pixels: int
    ) -> None:
        self._processor, self._grid, self._patch = processor, grid, patch_pixels
        self._whole = self._contrast((64, 64)).amax((2, 3), keepdim=True)
        if not (self._whole > 0).all():
            raise UnsupportedModel(
                "expected an image processor that tells black from white, to find its padding by, this one's pixels are "
                "equal: leave image_area out of what is captured"
            )
        self.of = lru_cache(MEASURED_SIZES)(self._measure)

    def _measure(self, size: tuple[int, int]) -> Float[Tensor, "1 patch"]:
        """Of images of one width and height: share of each patch's pixels that show the image; 1 is all.

        Padding has the same colour in a black image and a white one. Where image and padding are blended (a processor that
        resizes after it pads), a pixel counts by its part of the contrast.
        """
        (rows, columns), edge = self._grid, self._patch
        share = (self._contrast(size) / self._whole).clamp(0, 1).mean(1)
        patches = share[:, : rows * edge, : columns * edge].reshape(1, rows, edge, columns, edge)
        return patches.mean((2, 4)).reshape(1, rows * columns)

    def _contrast(self, size: tuple[int, int]) -> Float[Tensor, "1 3 height width"]:
        black, white = (self._processor(Image.new("RGB", size, name))["pixel_values"] for name in ("black", "white"))
        return (white - black).abs().float()
