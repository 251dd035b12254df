"""What can be wrong with stored features: a few axes, on each the right choice and a finite list of others.

A hypothesis picks one choice on every axis; its causes are those of the choices that are not the right one. Axes of the
picture (suspect_pictures.py) cost a forward of the tower for every choice; those here are tried on what one forward shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stage1_extract.encoding.encode import EveryLayer, Selection
from stage1_extract.encoding.tower import TowerFacts
from store.layout.schema import Dtype

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


Hypothesis = Mapping[str, Choice]
"""Choices by axis. An axis that is not named has its right choice."""


def causes_of(hypothesis: Hypothesis) -> tuple[Cause, ...]:
    """Return what is wrong under a hypothesis."""
    return tuple(choice.cause for choice in hypothesis.values() if choice.cause is not None)


def causes_key(hypothesis: Hypothesis) -> str:
    """Return the causes of a hypothesis as one text."""
    return "; ".join(sorted(choice.cause.detail for choice in hypothesis.values() if choice.cause is not None))


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
