"""The arrays that a tower can give, what each of them costs to describe, and how it is made from one forward."""

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


@dataclass(frozen=True)
class Captured:
    """An array that is made of a layer's queries and keys."""

    reduction: Reduction
    where: Where
    """Which layers: the one that makes the (last listed) features, every one on an axis of its own, or the tower's last."""
    axes: tuple[str, ...]
    """Of one layer, the row's axis called `patch` (without the CLS row) or `token` (with it, first)."""
    keeps_dtype: bool = False
    """Whether it is rounded to the compute dtype; attention is always float32."""
    needs_cls: bool = False


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
"""What is made of `raw` by a CLIP checkpoint, which must be named for them."""
IMAGE_AREA = "image_area"
"""What the image processor shows, and no tower."""
NAMES = ("raw", "projected", "cls_hidden", *CAPTURED, "hidden_mean", *CLIP_SPACE, IMAGE_AREA)
"""All that can be asked for."""
SIDE = frozenset(NAMES) - {"raw", "projected", "cls_hidden", "cls_attention"}
"""What is not stored unless asked for."""
CORE = ("cls_hidden", "cls_attention", "cls_attention_layers", "received_attention", "keys", IMAGE_AREA)
"""What `--capture core` asks for: with LLaVA-1.5 in 16 bit a fifth of the bytes of `raw`."""


def with_captured(experiment: Experiment) -> Experiment:
    """With the names that `extract.capture` stands for among `store.arrays`; which of them exist is checked by a family.

    Those that are named one by one stay in `extract.capture` and are refused where a tower cannot give them.
    """
    known = NAMES if experiment.model.clip is not None else [name for name in NAMES if name not in CLIP_SPACE]
    groups = {"core": CORE, "all": known}
    named = [name for given in experiment.extract.capture for name in groups.get(given, (given,))]
    by_name = tuple(name for name in experiment.extract.capture if name not in groups)
    extract = experiment.extract.model_copy(update={"capture": by_name})
    return experiment.model_copy(update={"extract": extract}).with_arrays([*experiment.store.arrays, *named])


def lacking(facts: TowerFacts, features: Sequence[int]) -> dict[str, str]:
    """Arrays that a tower cannot give, with the reason; `features` are the hidden states that make `raw`."""
    found: dict[str, str] = {}
    if features[-1] == 0:
        made = [name for name, one in CAPTURED.items() if one.where == "features"]
        found |= dict.fromkeys(made, "the features are the embeddings, which no attention makes")
    if not facts.has_cls:
        made = ["cls_hidden", *(name for name, one in CAPTURED.items() if one.needs_cls)]
        found |= dict.fromkeys(made, "the tower has no CLS row")
    if not facts.has_clip_space:
        found |= dict.fromkeys(CLIP_SPACE, "the tower is none of a CLIP, whose space images and texts share")
    elif len(features) > 1:
        found |= dict.fromkeys(CLIP_SPACE, "the features are several hidden states, CLIP's space takes one")
    return found


def specs(
    facts: TowerFacts, features: Sequence[int], drops_cls: bool, dtype: Dtype, embed: int, clip: int | None
) -> list[ArraySpec]:
    """Descriptions of all arrays that a tower can give; `clip` is the width of the space of the CLIP that is named."""
    rows, hidden = facts.patches + int(facts.has_cls and not drops_cls), facts.hidden * len(features)
    layers = {"hidden_states": list(features)}
    averaged = {"hidden_states": list(hidden_mean_states(facts.layers))}
    known = [
        ArraySpec(name="raw", axes=("patch", "hidden"), shape=(rows, hidden), dtype=dtype, attributes=layers),
        ArraySpec(name="projected", axes=("patch", "embed"), shape=(rows, embed), dtype=dtype),
        ArraySpec(name="cls_hidden", axes=("hidden",), shape=(hidden,), dtype=dtype, attributes=layers),
        *(_spec(name, one, facts, features, dtype) for name, one in CAPTURED.items()),
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


def _spec(name: str, one: Captured, facts: TowerFacts, features: Sequence[int], dtype: Dtype) -> ArraySpec:
    sizes = {
        "head": facts.heads, "patch": facts.patches, "token": facts.patches + int(facts.has_cls),
        "width": facts.hidden // facts.heads, "hidden": facts.hidden, "layer": facts.layers,
    }  # fmt: skip
    axes = ("layer", *one.axes) if one.where == "every" else one.axes
    layers = layers_of(one.where, facts, features)
    attributes: dict[str, Any] = {"layers": list(layers)} if one.where == "every" else {"layer": layers[0]}
    shape = tuple(sizes[axis] for axis in axes)
    kept = dtype if one.keeps_dtype else "float32"
    return ArraySpec(name=name, axes=axes, shape=shape, dtype=kept, attributes=attributes)


def layers_of(where: Where, facts: TowerFacts, features: Sequence[int]) -> tuple[int, ...]:
    """The layers, from 0; layer j makes hidden state j + 1."""
    return {"features": (features[-1] - 1,), "every": tuple(range(facts.layers)), "last": (facts.layers - 1,)}[where]


def captured(name: str, tap: AttentionTap, facts: TowerFacts, features: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An array of CAPTURED, after the forward."""
    one = CAPTURED[name]
    found = [tap.found[layer, one.reduction] for layer in layers_of(one.where, facts, features)]
    rows = torch.stack(found, 1) if one.where == "every" else found[0]
    if facts.has_cls and "patch" in one.axes:
        axis = rows.dim() - len(one.axes) + one.axes.index("patch")
        rows = rows.narrow(axis, 1, facts.patches)
    return (rows.to(dtype) if one.keeps_dtype else rows).contiguous()


def hidden_mean(states: Sequence[Tensor], facts: TowerFacts) -> Tensor:
    """Patches averaged over late hidden states, rounded once."""
    chosen = [states[state].float() for state in hidden_mean_states(facts.layers)]
    mean = torch.stack(chosen).mean(0)[:, int(facts.has_cls) :]
    return mean.to(states[0].dtype).contiguous()


def hidden_mean_states(layers: int) -> range:
    """Which hidden states those are in a tower of so many layers."""
    first, last = (tower_hidden_state(state, layers) for state in HIDDEN_MEAN)
    return range(first, last + 1)
