"""The arrays that a tower can give: the description of each, and how it is made from one forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from configs.experiment import Experiment
from configs.published_layers import tower_hidden_state
from stage1_extract.encoding.attention import (
    AttentionTap,
    Reduction,
    cls_row,
    cls_row_mean,
    diagonal,
    mean_keys,
    received,
    whole_cls_row,
    whole_keys,
)
from stage1_extract.encoding.tower import TowerFacts
from store.layout.schema import ArraySpec, Dtype

HIDDEN_MEAN = (16, 24)
"""First and last of the hidden states that `hidden_mean` averages, published for a tower of 24 layers."""
Where = Literal["features", "every", "last"]
"""The layers that an array is made of: the layer that makes the (last listed) features, every layer, or the last one."""


@dataclass(frozen=True)
class Captured:
    """How an array is made of a layer's queries and keys."""

    reduction: Reduction
    where: Where
    """Which layers are captured; `every` puts the layers on an axis of their own."""
    axes: tuple[str, ...]
    """Axes of one layer's values. Rows are on the axis `patch` (without the CLS row) or `token` (with the CLS row first)."""
    keeps_dtype: bool = False
    """Whether the values are rounded to the compute dtype; attention is always float32."""
    needs_cls: bool = False
    """Whether only a tower with a CLS row gives this array."""


CAPTURED = {
    "cls_attention": Captured(cls_row, "features", ("head", "patch"), needs_cls=True),
    "cls_attention_layers": Captured(cls_row_mean, "every", ("patch",), needs_cls=True),
    "received_attention": Captured(received, "every", ("patch",)),
    "self_attention_diagonal": Captured(diagonal, "features", ("patch",)),
    "keys": Captured(mean_keys, "features", ("token", "width"), keeps_dtype=True),
    "last_layer_attention": Captured(whole_cls_row, "last", ("patch",), needs_cls=True),
    "last_layer_keys": Captured(whole_keys, "last", ("patch", "hidden"), keeps_dtype=True),
}
CLIP_SPACE = ("clip_patches", "clip_projected")
"""Arrays that a CLIP checkpoint makes of `raw`; model.clip must name the checkpoint."""
IMAGE_AREA = "image_area"
"""The array that the image processor makes, without a tower."""
NAMES = ("raw", "projected", "cls_hidden", *CAPTURED, "hidden_mean", *CLIP_SPACE, IMAGE_AREA)
"""Every array that can be asked for."""
SIDE = frozenset(NAMES) - {"raw", "projected", "cls_hidden", "cls_attention"}
"""Arrays that are stored only if they are asked for."""
CORE = ("cls_hidden", "cls_attention", "cls_attention_layers", "received_attention", "keys", IMAGE_AREA)
"""Arrays that `--capture core` asks for. With LLaVA-1.5 in 16 bit, they take a fifth of the bytes of `raw`."""


def with_captured(experiment: Experiment) -> Experiment:
    """Add the arrays that `extract.capture` asks for to `store.arrays`; the groups `core` and `all` become names.

    A family checks which of the names exist. Names that the user gave one by one stay in `extract.capture`, as they are
    refused where the tower cannot give them; names from a group are left out with a note.
    """
    known = NAMES if experiment.model.clip is not None else [name for name in NAMES if name not in CLIP_SPACE]
    groups = {"core": CORE, "all": known}
    named = [name for given in experiment.extract.capture for name in groups.get(given, (given,))]
    by_name = tuple(name for name in experiment.extract.capture if name not in groups)
    extract = experiment.extract.model_copy(update={"capture": by_name})
    return experiment.model_copy(update={"extract": extract}).with_arrays([*experiment.store.arrays, *named])


def lacking(facts: TowerFacts, features: Sequence[int]) -> dict[str, str]:
    """Return the arrays that a tower cannot give, with the reason; `features` are the hidden states that make `raw`."""
    absent: dict[str, str] = {}
    if features[-1] == 0:
        of_features = [name for name, array in CAPTURED.items() if array.where == "features"]
        absent |= dict.fromkeys(of_features, "the features are the embeddings, which no attention makes")
    if not facts.has_cls:
        of_cls = ["cls_hidden", *(name for name, array in CAPTURED.items() if array.needs_cls)]
        absent |= dict.fromkeys(of_cls, "the tower has no CLS row")
    if not facts.has_clip_space:
        absent |= dict.fromkeys(CLIP_SPACE, "the tower is not a CLIP's, whose space images and texts share")
    elif len(features) > 1:
        absent |= dict.fromkeys(CLIP_SPACE, "the features are several hidden states, CLIP's space takes one")
    return absent


def specs(
    facts: TowerFacts, features: Sequence[int], drops_cls: bool, dtype: Dtype, embed: int, clip: int | None
) -> list[ArraySpec]:
    """Describe every array that a tower can give.

    Args:
        facts: Geometry of the tower.
        features: The hidden states that make `raw`.
        drops_cls: Whether the CLS row is left out of the features.
        dtype: Dtype of the features.
        embed: Width of `projected`.
        clip: Width of the space of the CLIP that model.clip names; None where it names none.

    """
    rows, hidden = facts.patches + int(facts.has_cls and not drops_cls), facts.hidden * len(features)
    layers = {"hidden_states": list(features)}
    averaged = {"hidden_states": list(hidden_mean_states(facts.layers))}
    known = [
        ArraySpec(name="raw", axes=("patch", "hidden"), shape=(rows, hidden), dtype=dtype, attributes=layers),
        ArraySpec(name="projected", axes=("patch", "embed"), shape=(rows, embed), dtype=dtype),
        ArraySpec(name="cls_hidden", axes=("hidden",), shape=(hidden,), dtype=dtype, attributes=layers),
        *(_spec(name, array, facts, features, dtype) for name, array in CAPTURED.items()),
        ArraySpec(
            name="hidden_mean", axes=("patch", "hidden"), shape=(facts.patches, facts.hidden), dtype=dtype,
            attributes=averaged,
        ),
        *(
            ArraySpec(name=name, axes=("patch", "clip"), shape=(rows, clip), dtype=dtype, attributes=layers)
            for name in CLIP_SPACE if clip is not None
        ),
        ArraySpec(name=IMAGE_AREA, axes=("patch",), shape=(facts.patches,), dtype="float32"),
    ]  # fmt: skip
    absent = lacking(facts, features)
    return [spec for spec in known if spec.name not in absent]


def _spec(name: str, array: Captured, facts: TowerFacts, features: Sequence[int], dtype: Dtype) -> ArraySpec:
    sizes = {
        "head": facts.heads, "patch": facts.patches, "token": facts.patches + int(facts.has_cls),
        "width": facts.hidden // facts.heads, "hidden": facts.hidden, "layer": facts.layers,
    }  # fmt: skip
    axes = ("layer", *array.axes) if array.where == "every" else array.axes
    layers = layers_of(array.where, facts, features)
    attributes: dict[str, Any] = {"layers": list(layers)} if array.where == "every" else {"layer": layers[0]}
    shape = tuple(sizes[axis] for axis in axes)
    stored_dtype = dtype if array.keeps_dtype else "float32"
    return ArraySpec(name=name, axes=axes, shape=shape, dtype=stored_dtype, attributes=attributes)


def layers_of(where: Where, facts: TowerFacts, features: Sequence[int]) -> tuple[int, ...]:
    """Return the numbers of the captured layers, counted from 0; layer j makes hidden state j + 1."""
    return {"features": (features[-1] - 1,), "every": tuple(range(facts.layers)), "last": (facts.layers - 1,)}[where]


def captured(name: str, tap: AttentionTap, facts: TowerFacts, features: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an array of CAPTURED, after the forward that `tap` followed."""
    array = CAPTURED[name]
    by_layer = [tap.reduced[layer, array.reduction] for layer in layers_of(array.where, facts, features)]
    rows = torch.stack(by_layer, 1) if array.where == "every" else by_layer[0]
    if facts.has_cls and "patch" in array.axes:
        axis = rows.dim() - len(array.axes) + array.axes.index("patch")
        rows = rows.narrow(axis, 1, facts.patches)
    return (rows.to(dtype) if array.keeps_dtype else rows).contiguous()


def hidden_mean(states: Sequence[Tensor], facts: TowerFacts) -> Tensor:
    """Average the patches over late hidden states; the mean is taken in float32 and rounded once."""
    chosen = [states[state].float() for state in hidden_mean_states(facts.layers)]
    mean = torch.stack(chosen).mean(0)[:, int(facts.has_cls) :]
    return mean.to(states[0].dtype).contiguous()


def hidden_mean_states(layers: int) -> range:
    """Return the hidden states that `hidden_mean` averages in a tower of `layers` layers."""
    first, last = (tower_hidden_state(state, layers) for state in HIDDEN_MEAN)
    return range(first, last + 1)
