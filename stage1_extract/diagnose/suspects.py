"""What can be wrong with stored features: a few axes, each with the right choice and a finite list of others.

A hypothesis takes one choice on every axis; its causes are the causes of the choices that are not right. A choice on an axis
of the picture (suspect_pictures.py) costs a forward of the tower; the choices in this file share one forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stage1_extract.encoding.encode import EveryLayer, FeatureSelection
from stage1_extract.encoding.tower import TowerFacts
from store.layout.schema import Dtype, StoredDtype

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
"""Dtypes in which features may have been computed or rounded."""
UNIT = "unit"
"""Value on the scale axis that stands for scaling every token to length 1."""


@dataclass(frozen=True)
class Cause:
    """One thing that is wrong with features."""

    kind: str
    """`blank`, `cls_row`, `dtype`, `images`, `layer`, `patch_order`, `picture`, `processor`, `projection`, `projector`
    or `scale`.
    """
    detail: str
    """The cause in words."""


OTHER_IMAGES = Cause("images", "rows hold the features of other images")
ZEROS = Cause("blank", "rows or tokens that are all zero")
ONE_VALUE = Cause("blank", "rows or tokens in which all values are the same")
NOT_PROJECTED = Cause("projection", "`projected` is not the projection of `raw`")
OTHER_PROJECTOR = Cause(
    "projector", "the projector in the store is not the checkpoint's (`projected` was not made by it)"
)


@dataclass(frozen=True, eq=False)
class Choice:
    """One choice on an axis; `cause` is None for the choice that the checkpoint asks for."""

    value: Any
    cause: Cause | None = None


Hypothesis = Mapping[str, Choice]
"""Choices by axis. An axis that is not in the mapping has its right choice."""


def causes_of(hypothesis: Hypothesis) -> tuple[Cause, ...]:
    """Return what is wrong if a hypothesis is true."""
    return tuple(choice.cause for choice in hypothesis.values() if choice.cause is not None)


def causes_key(hypothesis: Hypothesis) -> str:
    """Return the causes of a hypothesis as one text, by which equal hypotheses are recognised."""
    return "; ".join(sorted(choice.cause.detail for choice in hypothesis.values() if choice.cause is not None))


def compute_axis(stored: Dtype, asked: Dtype) -> list[Choice]:
    """List the dtypes in which tower and projector may have computed, the likeliest first.

    In a store of another dtype than the config asks for, every choice is a cause.
    """
    if stored == asked:
        others = [Choice(dtype, Cause("dtype", f"computed in {dtype}, then cast to {stored}")) for dtype in DTYPES]
        return [Choice(asked), *(choice for choice in others if choice.value != asked)]
    native = Cause("dtype", f"computed and stored in {stored}, the config asks for {asked}")
    cast = Cause("dtype", f"computed in {asked} as the config asks, then stored in {stored}")
    rest = [dtype for dtype in DTYPES if dtype not in (stored, asked)]
    third = [Choice(dtype, Cause("dtype", f"computed in {dtype}, stored in {stored}")) for dtype in rest]
    return [Choice(stored, native), Choice(asked, cast), *third]


def layer_axis(selection: FeatureSelection, seen: EveryLayer) -> list[Choice]:
    """List the layers that may have been taken, the right ones first, then the tower's own output.

    Where the checkpoint asks for one layer, every other layer is listed; where it asks for several, the list is shifted.
    """
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


def row_axis(selection: FeatureSelection, facts: TowerFacts) -> list[Choice]:
    """List the rows of a hidden state that may have been taken, as slices."""
    patches, every, all_but_last = slice(1, None), slice(0, None), slice(0, -1)
    if not facts.has_cls:
        return [Choice(every)]
    shifted = Choice(all_but_last, Cause("cls_row", "the last patch was dropped instead of the CLS row"))
    if selection.drops_cls:
        return [Choice(patches), Choice(every, Cause("cls_row", "the CLS row was kept")), shifted]
    return [Choice(every), Choice(patches, Cause("cls_row", "the CLS row was dropped"))]


def order_axis(grid: tuple[int, int]) -> list[Choice]:
    """List the orders of the patches that have a name; the value of a choice holds the raster index of each stored patch."""
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
    """Return the choice of an order of the patches that was found by comparing them."""
    return Choice(order, Cause("patch_order", "patches permuted, in an order that has no name"))


def scaled(factor: float | str) -> Choice:
    """Return the choice of a factor that was found by comparing."""
    words = "every token scaled to length 1" if factor == UNIT else f"values multiplied by {factor:.6g}"
    return Choice(factor, Cause("scale", words))


def rounding_axis(stored: StoredDtype, array: str) -> list[Choice]:
    """List the round trips through another dtype that an array may have made."""
    dtypes = [dtype for dtype in DTYPES[1:] if dtype != stored]
    return [Choice(None), *(Choice(dtype, Cause("dtype", f"{array} went through {dtype}")) for dtype in dtypes)]
