"""What can be wrong with stored features: a few axes, on each the right choice and a finite list of others.

A hypothesis picks one choice on every axis; its causes are those of the choices that are not the right one. Axes of the
picture (`PIXEL_AXES`) cost a forward of the tower for every choice; all others are tried on what one forward shows.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers.utils.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from stage1_extract.encode import EveryLayer, Selection
from stage1_extract.tower import TowerFacts
from store.schema import Dtype

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
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
UNIT = "unit"
"""Value of the scale axis that brings every token to length 1."""


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong."""

    kind: str
    """`blank`, `cls_row`, `dtype`, `images`, `layer`, `patch_order`, `picture`, `processor`, `projection`, `projector`
    or `scale`.
    """
    detail: str
    """In words."""


OTHER_IMAGES = Cause("images", "rows hold the features of other images")
ZEROS = Cause("blank", "rows or tokens that are all zero")
ONE_VALUE = Cause("blank", "rows or tokens in which all values are the same")
NOT_PROJECTED = Cause("projection", "`projected` is not the projection of `raw`")
OTHER_PROJECTOR = Cause(
    "projector", "the projector in the store is not the checkpoint's (`projected` was not made by it)"
)


@dataclass(frozen=True, eq=False)
class Choice:
    """One way to do one thing; `cause` is None for the way that the checkpoint asks for."""

    value: Any
    cause: Cause | None = None


@dataclass(frozen=True)
class PixelChange:
    """What happens to a picture before the tower sees it."""

    edit: Callable[[Image.Image], Image.Image] | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Laid over the image processor's own."""


Hypothesis = Mapping[str, Choice]
"""Choices by axis. An axis that is not named has its right choice."""
PIXEL_AXES = ("jpeg", "turn", "channels", "fit", "normalisation", "resampling", "rescaling")
"""In the order in which their changes are made."""
LIKELY_FIRST = ("fit", "normalisation", "channels", "resampling", "turn", "rescaling", "jpeg")


def causes_of(hypothesis: Hypothesis) -> tuple[Cause, ...]:
    """Return what is wrong under a hypothesis."""
    return tuple(choice.cause for choice in hypothesis.values() if choice.cause is not None)


def pixel_axes(stock: Any) -> dict[str, list[Choice]]:
    """List other pictures and other image processors, the likely ones first; `stock` is the checkpoint's processor.

    Right choices are not listed: there is nothing to change for them.
    """
    axes = {**_processor_axes(stock), **_picture_axes()}
    return {axis: axes[axis] for axis in LIKELY_FIRST}


def together(axes: Mapping[str, Sequence[Choice]], count: int) -> Iterator[Hypothesis]:
    """Yield all ways to depart on exactly `count` axes, at most two of them."""
    singles = [(axis, choice) for axis, choices in axes.items() for choice in choices]
    for chosen in combinations(singles, count):
        if len({axis for axis, _ in chosen}) == count:
            yield dict(chosen)


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


def compute_axis(stored: Dtype, asked: Dtype) -> list[Choice]:
    """List the dtypes in which tower and projector may have computed, the likeliest first.

    In a store of another dtype than the config asks for, every choice is a cause.
    """
    if stored == asked:
        others = [Choice(one, Cause("dtype", f"computed in {one}, then cast to {stored}")) for one in DTYPES]
        return [Choice(asked), *(choice for choice in others if choice.value != asked)]
    native = Cause("dtype", f"computed and stored in {stored}, the config asks for {asked}")
    cast = Cause("dtype", f"computed in {asked} as the config asks, then stored in {stored}")
    rest = [one for one in DTYPES if one not in (stored, asked)]
    third = [Choice(one, Cause("dtype", f"computed in {one}, stored in {stored}")) for one in rest]
    return [Choice(stored, native), Choice(asked, cast), *third]


def layer_axis(selection: Selection, seen: EveryLayer) -> list[Choice]:
    """List the layers: for one layer every other, for several the whole list shifted; then the tower's own output."""
    states = len(seen.hidden_states)
    own = selection.layers
    if len(own) == 1:
        others = [(layer,) for layer in reversed(range(states)) if (layer,) != own]
    else:
        shifts = [shift for shift in range(-states, states) if shift]
        others = [tuple(layer + shift for layer in own) for shift in shifts]
        others = [layers for layers in others if min(layers) >= 0 and max(layers) < states]
    last_is_state = torch.equal(seen.last_hidden_state, seen.hidden_states[-1])

    def named(layers: tuple[int, ...]) -> str:
        if layers == (states - 1,) and last_is_state:
            return "-1 (= last_hidden_state)"
        return ", ".join(str(layer - states) for layer in layers)

    def other(value: tuple[int, ...] | None, name: str) -> Choice:
        return Choice(value, Cause("layer", f"layer {name} instead of {named(own)}"))

    choices = [Choice(own), *(other(layers, named(layers)) for layers in others)]
    return choices if last_is_state else [*choices, other(None, "last_hidden_state (after the final layer norm)")]


def row_axis(selection: Selection, facts: TowerFacts) -> list[Choice]:
    """List which rows of a hidden state may have been taken, as slices."""
    patches, every, all_but_last = slice(1, None), slice(0, None), slice(0, -1)
    if not facts.has_cls:
        return [Choice(every)]
    shifted = Choice(all_but_last, Cause("cls_row", "the last patch was dropped instead of the CLS row"))
    if selection.drops_cls:
        return [Choice(patches), Choice(every, Cause("cls_row", "the CLS row was kept")), shifted]
    return [Choice(every), Choice(patches, Cause("cls_row", "the CLS row was dropped"))]


def order_axis(grid: tuple[int, int]) -> list[Choice]:
    """List the orders of the patches that have a name; a choice maps raster indices to the order on disk."""
    raster = torch.arange(grid[0] * grid[1]).view(grid)
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "patches column by column (transposed)": lambda index: index.T,
        "patches mirrored left to right": lambda index: index.flip(1),
        "patches upside down": lambda index: index.flip(0),
        "patches in reverse order": lambda index: index.flip(0, 1),
        "patches turned by 90 degrees": lambda index: index.rot90(1),
        "patches turned by 270 degrees": lambda index: index.rot90(3),
        "patches transposed along the other diagonal": lambda index: index.flip(0, 1).T,
    }
    moved = [Choice(change(raster).reshape(-1), Cause("patch_order", words)) for words, change in others.items()]
    return [Choice(None), *moved]


def permuted(order: Int[Tensor, " patch"]) -> Choice:
    """Make a choice of an order of the patches that was found by comparing them."""
    return Choice(order, Cause("patch_order", "patches permuted, in an order that has no name"))


def scaled(factor: float | str) -> Choice:
    """Make a choice of a factor that was found by comparing."""
    words = "every token scaled to length 1" if factor == UNIT else f"values multiplied by {factor:.6g}"
    return Choice(factor, Cause("scale", words))


def rounding_axis(stored: Dtype, array: str) -> list[Choice]:
    """List round trips through another dtype."""
    others = [Choice(one, Cause("dtype", f"{array} went through {one}")) for one in DTYPES[1:] if one != stored]
    return [Choice(None), *others]
