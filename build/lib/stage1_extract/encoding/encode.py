"""The one place that calls a vision tower."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stage1_extract.encoding.arrays import CAPTURED, captured, hidden_mean, layers_of
from stage1_extract.encoding.attention import AttentionTap, cls_row
from stage1_extract.encoding.clip_space import ClipSpace
from stage1_extract.encoding.tower import Tower, TowerFacts
from store.projectors import Projector, project_image

SelectStrategy = str
"""`default` drops the CLS row, `full` keeps every row."""


@dataclass(frozen=True)
class Selection:
    """Which rows of which hidden states are the model's image features."""

    layers: tuple[int, ...]
    """Indices into `hidden_states`, from 0 (the embeddings); more than one are concatenated on the hidden axis."""
    drops_cls: bool
    """Whether row 0 is left out."""

    def of(self, hidden_states: tuple[Tensor, ...]) -> Float[Tensor, "image token hidden"]:
        """What the projector gets."""
        chosen = [hidden_states[layer] for layer in self.layers]
        rows = [state[:, 1:] for state in chosen] if self.drops_cls else chosen
        return torch.cat(rows, dim=-1).contiguous()


@dataclass(frozen=True)
class VisionHalf:
    """Tower and projector of a checkpoint, in eval mode on their device."""

    tower: nn.Module
    kind: type[Tower]
    facts: TowerFacts
    selection: Selection
    projector: Projector
    arrays: frozenset[str]
    """Which arrays to make; see `encode`."""
    clip: ClipSpace | None
    """Where `raw` is led besides; None unless it is asked for."""

    def tap(self) -> AttentionTap:
        """On every layer; nothing is asked for yet."""
        layers = self.kind.layers(self.tower)
        return AttentionTap({n: self.kind.query_and_key(one) for n, one in enumerate(layers)}, self.facts.heads)


@torch.no_grad()
def encode(half: VisionHalf, pixels: Float[Tensor, "image 3 height width"]) -> dict[str, Float[Tensor, "image ..."]]:
    """The arrays of a batch of images, from one forward of the tower.

    raw            (image, patch, hidden)  what the projector gets; under `full` the CLS row is its first row
    projected      (image, patch, embed)   `project_image` of it, image by image
    cls_hidden     (image, hidden)         the CLS row of the same layers
    cls_attention  (image, head, patch)    float32; the CLS row's attention in the layer that makes the (last listed)
                                           features; the CLS -> CLS column dropped, not renormalised
    and what else stage1_extract/encoding/arrays.py knows.
    """
    facts, features = half.facts, half.selection.layers
    asked = [name for name in CAPTURED if name in half.arrays]
    tap = half.tap()
    for name in asked:
        for layer in layers_of(CAPTURED[name].where, facts, features):
            tap.want(layer, CAPTURED[name].reduction)
    with tap:
        states = half.tower(pixels, output_hidden_states=True).hidden_states
    raw = half.selection.of(states)
    arrays: dict[str, Tensor] = {"raw": raw} if "raw" in half.arrays else {}
    if "projected" in half.arrays:
        arrays["projected"] = torch.cat([project_image(half.projector, raw[i : i + 1]) for i in range(len(raw))])
    if "cls_hidden" in half.arrays:
        arrays["cls_hidden"] = torch.cat([states[layer][:, 0] for layer in features], dim=-1)
    if "hidden_mean" in half.arrays:
        arrays["hidden_mean"] = hidden_mean(states, facts)
    if half.clip is not None:
        arrays |= half.clip.arrays(raw, half.arrays)
    return arrays | {name: captured(name, tap, facts, features, raw.dtype) for name in asked}


@dataclass(frozen=True)
class EveryLayer:
    """All that one forward of the tower shows, for comparing layers."""

    hidden_states: tuple[Float[Tensor, "image token hidden"], ...]
    """From 0, the embeddings."""
    last_hidden_state: Float[Tensor, "image token hidden"]
    """What the tower returns: in some towers a layer norm comes after the last layer."""
    cls_attention: tuple[Float[Tensor, "image head patch"], ...]
    """By layer, as `encode` stores it; empty where the tower has no CLS row."""


@torch.no_grad()
def encode_every_layer(half: VisionHalf, pixels: Float[Tensor, "image 3 height width"]) -> EveryLayer:
    """One forward of the tower, with nothing selected."""
    layers, tap = range(half.facts.layers if half.facts.has_cls else 0), half.tap()
    for layer in layers:
        tap.want(layer, cls_row)
    with tap:
        found = half.tower(pixels, output_hidden_states=True)
    attention = tuple(tap.found[layer, cls_row][:, :, 1:].contiguous() for layer in layers)
    return EveryLayer(tuple(found.hidden_states), found.last_hidden_state, attention)
