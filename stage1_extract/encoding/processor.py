"""Turn an RGB image into pixel values, by the checkpoint's own image processor."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from stage1_extract.errors import BadImage, UnsupportedModel
from store.checkpoint.contrast import measure_contrast
from store.checkpoint.image_processor import open_image_processor, processor_fingerprint

MAX_RESIZED_PIXELS = 50_000_000
"""Most pixels of an image that is resized before it is cropped: where the short edge is resized to the tower's, an image of
1 x 20,000 pixels and 100 bytes on disk would become 22 GB in memory."""

TRIED_SIZES = ((64, 64), (96, 64), (64, 96), (700, 500))
"""Widths and heights of the blank images that a processor or a model is tried out with."""

MEASURED_SIZES = 4096
"""Number of image sizes whose areas are remembered; an area takes about 2 kB."""


class ImageProcessor:
    """A checkpoint's image processor, called with one image at a time."""

    def __init__(self, source: str, revision: str | None, trust_remote_code: bool, **options: Any) -> None:
        """Open the processor of a checkpoint; `options` replace the checkpoint's settings."""
        self.stock = open_image_processor(source, revision, trust_remote_code)
        self.options = options
        self.opening = {"source": source, "revision": revision, "trust_remote_code": trust_remote_code, **options}
        """Arguments with which another process opens the same processor."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Class, backend and settings; see store/checkpoint/image_processor.py."""
        return processor_fingerprint(self.stock, self.options)

    def __call__(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Return the tensors of one image, each with a leading image axis of length 1.

        Raises BadImage for an image that would fill the memory when it is resized.
        """
        self._require_bounded(image)
        return dict(self.stock(images=[image], return_tensors="pt", **self.options))

    def pixels(self) -> tuple[int, int]:
        """Return height and width of the picture that the tower sees, tried out on images of several shapes.

        Raises UnsupportedModel (exit 2) where the size differs from image to image, as a store has one number of patches.
        """
        shapes = {tuple(self(Image.new("RGB", size))["pixel_values"].shape) for size in TRIED_SIZES}
        shape = next(iter(shapes))
        if len(shapes) == 1 and len(shape) == 4 and shape[:2] == (1, 3):
            return shape[2], shape[3]
        listed = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
        raise UnsupportedModel(
            "expected an image processor that makes one picture of one size of every image, (1, 3, height, width), this one "
            f"makes {listed}: set do_resize and do_center_crop (or do_pad) in the checkpoint's preprocessor_config.json"
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
    """Measures which part of each patch shows the image and which shows padding, whatever the processor does.

    The processor is tried out on a black and a white image: only pixels that show the image differ.
    """

    def __init__(
        self, processor: Callable[[Image.Image], Mapping[str, Tensor]], grid: tuple[int, int], patch_pixels: int
    ) -> None:
        self._processor, self._grid, self._patch = processor, grid, patch_pixels
        contrast = measure_contrast(lambda image: processor(image)["pixel_values"][0])
        if contrast is None:
            raise UnsupportedModel(
                "expected an image processor that tells black from white, by which its padding is found, this one's pixels are "
                "equal: leave image_area out of --capture"
            )
        self._contrast = contrast
        self.of = lru_cache(MEASURED_SIZES)(self._measure)
        """Returns the areas of images of one width and height; see `_measure`."""

    def _measure(self, size: tuple[int, int]) -> Float[Tensor, "1 patch"]:
        """Return, for images of one width and height, the share of each patch's pixels that show the image, from 0 to 1.

        Where image and padding are blended (by a processor that resizes after it pads), a pixel counts by its share of the
        contrast between black and white.
        """
        (rows, columns), edge = self._grid, self._patch
        black, white = (self._processor(Image.new("RGB", size, name))["pixel_values"] for name in ("black", "white"))
        share = ((white - black).abs().float() / self._contrast.span.abs()).clamp(0, 1).mean(1)
        patches = share[:, : rows * edge, : columns * edge].reshape(1, rows, edge, columns, edge)
        return patches.mean((2, 4)).reshape(1, rows * columns)
