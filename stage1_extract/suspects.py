"""What can be wrong with stored features: a few axes, on each the right choice and the finite list of others.

A hypothesis picks one choice on every axis; its causes are the choices that are not the right one. Hypotheses are tried
with few causes first, so that what explains a store is the smallest set of causes that does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
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

MOST_CAUSES = 3
"""Larger sets are not tried: with enough freedom everything is explained."""
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's resampling filters."""
NORMALISATIONS = {
    "CLIP's": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "ImageNet's": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "0.5": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
PROCESSOR_AXES = ("resampling", "normalisation", "fit", "rescaling")


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong."""

    kind: str
    """`cls_row`, `layer`, `projector`, `processor`, `dtype` or `patch_order`."""
    detail: str
    """In words."""


@dataclass(frozen=True)
class Choice:
    """One way to do one thing; `cause` is None for the way that the checkpoint asks for."""

    value: Any
    cause: Cause | None = None


Axes = Mapping[str, Sequence[Choice]]
"""Choices by axis, the right one first."""
Hypothesis = Mapping[str, Choice]


def hypotheses(axes: Axes, most: int = MOST_CAUSES) -> Iterator[Hypothesis]:
    """All ways to depart from the first choices on at most `most` axes, few departures first."""
    right = {name: choices[0] for name, choices in axes.items()}
    for count in range(most + 1):
        for changed in combinations(axes, count):
            for chosen in product(*(axes[name][1:] for name in changed)):
                yield right | dict(zip(changed, chosen, strict=True))


def causes_of(hypothesis: Hypothesis) -> tuple[Cause, ...]:
    """What is wrong under a hypothesis."""
    return tuple(choice.cause for choice in hypothesis.values() if choice.cause is not None)


def processor_axes(stock: Any) -> dict[str, list[Choice]]:
    """Other image processors: each choice is a set of options laid over the stock one's."""

    def other(detail: str, **options: Any) -> Choice:
        return Choice(options, Cause("processor", detail))

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
    fits = [other("padded to a square instead of cropped", pad=True)]
    if getattr(stock, "do_center_crop", None) and stock.crop_size is not None:
        edges = {"height": stock.crop_size["height"], "width": stock.crop_size["width"]}
        fits.append(other("squeezed to a square instead of cropped", size=edges, do_center_crop=False))
    rescales = [other("pixels not rescaled to 0..1", do_rescale=False)]
    listed = zip(PROCESSOR_AXES, (filters, norms, fits, rescales), strict=True)
    return {axis: [Choice({}), *others] for axis, others in listed}


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """LLaVA's `expand2square`: centred on a square of the mean colour."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), tuple(int(value * 255) for value in mean))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def layer_axis(selection: Selection, seen: EveryLayer) -> list[Choice]:
    """Other layers: for one layer every other, for several the whole list shifted; then the tower's own output."""
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
    """Whether row 0 is left out."""
    if not facts.has_cls:
        return [Choice(selection.drops_cls)]
    words = "the CLS row was kept" if selection.drops_cls else "the CLS row was dropped"
    return [Choice(selection.drops_cls), Choice(not selection.drops_cls, Cause("cls_row", words))]


def order_axis(grid: tuple[int, int]) -> list[Choice]:
    """Orders of the patches; a choice maps raster indices to the order on disk."""
    raster = torch.arange(grid[0] * grid[1]).view(grid)
    others: dict[str, Callable[[Tensor], Tensor]] = {
        "patches column by column (transposed)": lambda index: index.T,
        "patches mirrored left to right": lambda index: index.flip(1),
        "patches upside down": lambda index: index.flip(0),
        "patches in reverse order": lambda index: index.flip(0, 1),
    }
    moved = [Choice(change(raster).reshape(-1), Cause("patch_order", words)) for words, change in others.items()]
    return [Choice(None), *moved]


def rounding_axis(stored: Dtype, what: str) -> list[Choice]:
    """Round trips through another dtype."""
    trips: tuple[Dtype, ...] = ("float16", "bfloat16")
    others = [Choice(name, Cause("dtype", f"{what} went through {name}")) for name in trips if name != stored]
    return [Choice(None), *others]


def ordered(rows: Any, order: Int[Tensor, " patch"] | None, has_cls_row: bool) -> Any:
    """Rows (image, token, …) in another order of the patches; a CLS row stays in front."""
    if order is None:
        return rows
    offset = int(has_cls_row)
    index = torch.cat([torch.arange(offset), order + offset]).to(rows.device)
    return rows[:, index].contiguous()
