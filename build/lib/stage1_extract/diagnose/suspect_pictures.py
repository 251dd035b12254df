"""Other pictures and other image processors that a tower may have seen; every choice costs a forward to be tried."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from PIL import Image
from transformers.utils.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from stage1_extract.diagnose.suspects import Cause, Choice, Hypothesis

FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's resampling filters."""
NORMALISATIONS = {
    "CLIP's": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "ImageNet's": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "0.5": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
TURNS = {
    "mirrored left to right": Image.Transpose.FLIP_LEFT_RIGHT,
    "turned by 180 degrees": Image.Transpose.ROTATE_180,
    "turned by 90 degrees": Image.Transpose.ROTATE_90,
    "turned by 270 degrees": Image.Transpose.ROTATE_270,
    "mirrored top to bottom": Image.Transpose.FLIP_TOP_BOTTOM,
    "transposed": Image.Transpose.TRANSPOSE,
    "transposed along the other diagonal": Image.Transpose.TRANSVERSE,
}
"""All ways to lay a picture on its sides; degrees are counter-clockwise."""
JPEG_QUALITIES = (75, 95, 90, 85, 80, 70, 50, 100)
"""Pillow's default first, then OpenCV's."""


@dataclass(frozen=True)
class PixelChange:
    """What happens to a picture before the tower sees it."""

    edit: Callable[[Image.Image], Image.Image] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Laid over the image processor's own."""


PIXEL_AXES = ("jpeg", "turn", "channels", "fit", "normalisation", "resampling", "rescaling")
"""In the usual order of their changes."""
LIKELY_FIRST = ("fit", "normalisation", "channels", "resampling", "turn", "rescaling", "jpeg")


def pixel_axes(stock: Any) -> dict[str, list[Choice]]:
    """List other pictures and other image processors, the likely ones first; `stock` is the checkpoint's processor.

    Right choices are not listed: there is nothing to change for them.
    """
    axes = {**_processor_axes(stock), **_picture_axes()}
    return {axis: axes[axis] for axis in LIKELY_FIRST}


def together(axes: Mapping[str, Sequence[Choice]], count: int) -> Iterator[Hypothesis]:
    """Yield all ways to depart on exactly `count` axes; the changes are made in the order of a hypothesis.

    JPEG comes first, as of a file that is read and then turned, and once more last, as of one that is turned and saved.
    """
    singles = [(axis, choice) for axis, choices in axes.items() for choice in choices]
    for chosen in combinations(singles, count):
        if len({axis for axis, _ in chosen}) == count:
            changes = {axis: choice for axis in PIXEL_AXES for one, choice in chosen if one == axis}
            yield changes
            if "jpeg" in changes and {"turn", "channels"} & {*changes}:
                yield {axis: changes[axis] for axis in (*PIXEL_AXES[1:], "jpeg") if axis in changes}


def _processor_axes(stock: Any) -> dict[str, list[Choice]]:
    def other(detail: str, **options: Any) -> Choice:
        return Choice(PixelChange(options=options), Cause("processor", detail))

    own_filter = int(stock.resample)
    filters = [
        other(f"resampled {name} instead of {FILTERS[own_filter]}", resample=number)
        for number, name in FILTERS.items()
        if number != own_filter
    ]
    norms = [
        other(f"normalised by {name} mean and std", image_mean=list(mean), image_std=list(std))
        for name, (mean, std) in NORMALISATIONS.items()
        if (list(mean), list(std)) != (list(stock.image_mean), list(stock.image_std))
    ]
    norms.append(other("not normalised", do_normalize=False))
    fits: list[Choice] = []
    if getattr(stock, "do_center_crop", None) and stock.crop_size is not None:
        edges = {"height": stock.crop_size["height"], "width": stock.crop_size["width"]}
        fits.append(other("squeezed to a square instead of cropped", size=edges, do_center_crop=False))
    padded = Cause("processor", f"padded to a square instead of {'cropped' if fits else 'squeezed'}")
    fits.append(Choice(PixelChange(lambda image: pad_to_square(image, stock.image_mean)), padded))
    rescales = [other("pixels not rescaled to 0..1", do_rescale=False)]
    return {"resampling": filters, "normalisation": norms, "fit": fits, "rescaling": rescales}


def _picture_axes() -> dict[str, list[Choice]]:
    def edited(detail: str, edit: Callable[[Image.Image], Image.Image]) -> Choice:
        return Choice(PixelChange(edit), Cause("picture", detail))

    turns = [
        edited(f"pictures {words}", lambda image, turn=turn: image.transpose(turn)) for words, turn in TURNS.items()
    ]
    jpegs = [
        edited(f"pictures went through JPEG of quality {quality}", lambda image, q=quality: through_jpeg(image, q))
        for quality in JPEG_QUALITIES
    ]
    return {"turn": turns, "jpeg": jpegs, "channels": [edited("channels in the order BGR", channels_reversed)]}


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Pad like LLaVA's `expand2square`: centred on a square of the mean colour."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(int(value * 255) for value in mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Write a picture as JPEG and read it again."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def channels_reversed(image: Image.Image) -> Image.Image:
    """Take blue for red and red for blue, as code does that reads pictures with OpenCV."""
    return Image.merge("RGB", image.split()[::-1])
