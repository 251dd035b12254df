"""Call the vision tower: the only place in the project that does."""

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
"""`vision_feature_select_strategy` of a config: `default` drops the CLS row, `full` keeps every row."""


@dataclass(frozen=True)
class FeatureSelection:
    """Which rows of which hidden states are the model's image features."""

    layers: tuple[int, ...]
    """Indices into `hidden_states`, from 0 (the embeddings); several hidden states are concatenated on the hidden axis."""
    drops_cls: bool
    """Whether row 0 is left out."""

    def of(self, hidden_states: tuple[Tensor, ...]) -> Float[Tensor, "image token hidden"]:
        """Return what the projector takes."""
        chosen = [hidden_states[layer] for layer in self.layers]
        rows = [state[:, 1:] for state in chosen] if self.drops_cls else chosen
        return torch.cat(rows, dim=-1).contiguous()


@dataclass(frozen=True)
class VisionHalf:
    """Tower and projector of a checkpoint, in eval mode on their device."""

    tower: nn.Module
    kind: type[Tower]
    facts: TowerFacts
    selection: FeatureSelection
    projector: Projector
    arrays: frozenset[str]
    """Which arrays to make; see `encode`."""
    clip: ClipSpace | None
    """Makes the arrays in CLIP's space; None unless such an array is asked for."""

    def tap(self) -> AttentionTap:
        """Return a tap on every layer, which is asked for nothing yet."""
        layers = self.kind.layers(self.tower)
        return AttentionTap({n: self.kind.query_and_key(layer) for n, layer in enumerate(layers)}, self.facts.heads)


@torch.no_grad()
def encode(half: VisionHalf, pixels: Float[Tensor, "image 3 height width"]) -> dict[str, Float[Tensor, "image ..."]]:
    """Return the arrays of a batch of images, from one forward of the tower.

    raw            (image, patch, hidden)  what the projector takes; under `full` the CLS row is its first row
    projected      (image, patch, embed)   `project_image` of `raw`, image by image
    cls_hidden     (image, hidden)         the CLS row of the same layers
    cls_attention  (image, head, patch)    float32; the CLS row's attention in the layer that makes the (last listed)
                                           features; the CLS -> CLS column is dropped, without renormalising

    All other arrays are listed in stage1_extract/encoding/arrays.py.
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
    """Everything that one forward of the tower makes, for comparing layers."""

    hidden_states: tuple[Float[Tensor, "image token hidden"], ...]
    """By hidden state; number 0 is the embeddings."""
    last_hidden_state: Float[Tensor, "image token hidden"]
    """What the tower returns; some towers apply a layer norm after the last layer."""
    cls_attention: tuple[Float[Tensor, "image head patch"], ...]
    """By layer, as `encode` stores it; empty where the tower has no CLS row."""

    def first(self) -> "EveryLayer":
        """Return the first image's share, and let go of the others'."""
        return EveryLayer(
            tuple(state[:1].clone() for state in self.hidden_states),
            self.last_hidden_state[:1].clone(),
            tuple(layer[:1].clone() for layer in self.cls_attention),
        )


@torch.no_grad()
def encode_every_layer(half: VisionHalf, pixels: Float[Tensor, "image 3 height width"]) -> EveryLayer:
    """Run the tower once, with nothing selected."""
    layers, tap = range(half.facts.layers if half.facts.has_cls else 0), half.tap()
    for layer in layers:
        tap.want(layer, cls_row)
    with tap:
        output = half.tower(pixels, output_hidden_states=True)
    attention = tuple(tap.reduced[layer, cls_row][:, :, 1:].contiguous() for layer in layers)
    return EveryLayer(tuple(output.hidden_states), output.last_hidden_state, attention)
