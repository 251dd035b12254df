"""Find out what the tower saw of an image, by experiments with the checkpoint's image processor; no tower is loaded."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw
from torch import Tensor

from configs.experiment import DataSection, ModelSection
from stage2_prune.errors import CannotShow, StoreMismatch
from store.checkpoint.contrast import measure_contrast
from store.checkpoint.image_processor import open_image_processor
from store.checkpoint.opening import load_config
from store.errors import DataMissing
from store.questions.image_files import FORMATS, OutsideRoot, locate
from store.questions.question import Box

OBJECT_SHARE = 0.1
"""A patch shows an object if at least this share of the patch's pixels shows the object."""


class TowerView:
    """The image processor's effect on images, and how its pixels lie over a grid of patches."""

    def __init__(self, model: ModelSection, grid: tuple[int, int]) -> None:
        self.grid = grid
        self.edge: int = load_config(model.checkpoint, model.revision, model.trust_remote_code).vision_config.patch_size
        """Side of a patch, in pixels."""
        self._stock = open_image_processor(model.checkpoint, model.revision, model.trust_remote_code)
        contrast = measure_contrast(self._pixels)
        if contrast is None:
            raise CannotShow("expected an image processor that tells black from white, this one's pixels are equal")
        self._black, self._contrast = contrast.black, contrast.span

    def picture(self, image: Image.Image) -> Float[np.ndarray, "height width 3"]:
        """Return what the processor leaves of an image, with normalisation undone (in [0, 1]), as far as there are patches."""
        shown = ((self._pixels(image) - self._black) / self._contrast).clamp(0, 1)
        return self._in_patches(shown).permute(1, 2, 0).numpy()

    def showing(self, size: tuple[int, int], region: Sequence[Box]) -> Bool[Tensor, " patch"] | None:
        """Find the patches that show the boxes of `region`, in an image of width and height `size`; None if no patch does.

        If the boxes cover OBJECT_SHARE of no patch, the patch that they cover most is returned.
        """
        drawn = Image.new("RGB", size, "black")
        canvas = ImageDraw.Draw(drawn)
        for left, top, right, bottom in region:
            corners = (left * size[0], top * size[1], right * size[0] - 1, bottom * size[1] - 1)
            canvas.rectangle([max(0, round(corner)) for corner in _upright(corners)], fill="white")
        nothing = self._pixels(Image.new("RGB", size, "black"))
        share = ((self._pixels(drawn) - nothing) / self._contrast).clamp(0, 1).mean(0, keepdim=True)
        rows, columns = self.grid
        covered = self._in_patches(share).reshape(rows, self.edge, columns, self.edge).mean((1, 3)).flatten()
        least = min(OBJECT_SHARE, covered.max().item())
        return covered >= least if least > 0 else None

    def _pixels(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        pixels: Any = self._stock(images=[image], return_tensors="pt")["pixel_values"]
        return pixels[0].float()

    def _in_patches(self, pixels: Float[Tensor, "channel height width"]) -> Float[Tensor, "channel high wide"]:
        """Cut off the pixels at the right and at the bottom that are in no patch."""
        rows, columns = self.grid
        return pixels[:, : rows * self.edge, : columns * self.edge]


def _upright(corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Widen a box that is thinner than a pixel to one pixel."""
    left, top, right, bottom = corners
    return left, top, max(left, right), max(top, bottom)


def read_image(data: DataSection, name: str, sha: str | None = None) -> Image.Image:
    """Open an image below `data.images`; its pixels are decoded only when they are needed.

    Args:
        data: the section `data` of the config.
        name: the image's name, as in the questions.
        sha: the sha256 of the file that was encoded; None leaves the file's content unchecked.

    Raises:
        DataMissing: (exit 5) if there is no such file.
        CannotShow: (exit 2) if stage 2 cannot open the images or this file.
        StoreMismatch: (exit 4) if the file's sha256 is another.
    """
    unpack = "images inside tar or parquet files are opened by stage 1 only: unpack those that you want to see"
    if data.format not in ("auto", "folder") or not data.images.is_dir():
        raise CannotShow(f"expected a folder of image files as data.images, got {data.images} ({unpack})")
    try:
        path = locate(data.images, name, data.follow_links)
    except OutsideRoot as outside:
        link = "" if outside.link is None else f" by the link {outside.link}, which data.follow_links: true follows"
        raise DataMissing(
            f"expected the image {name} in {data.images}, there is no such file below it: the name leads out{link}"
        ) from None
    if not path.is_file():
        raise DataMissing(f"expected the image {name} in {data.images}, there is no such file ({unpack})")
    content = path.read_bytes()
    if sha is not None and hashlib.sha256(content).hexdigest() != sha:
        raise StoreMismatch(
            f"expected the image that was encoded at {path}, it has changed since: bring it back, or let `extract --append` "
            "encode it as it is now"
        )
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except (OSError, ValueError, SyntaxError) as error:
        raise CannotShow(f"expected an image at {path}, it cannot be read: {error}") from None


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB as stage 1 does: alpha is dropped, 16-bit grey keeps its upper byte."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
