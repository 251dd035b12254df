"""Train the tower on labels of every patch (colour, shape, half, column, row) and on the objects that a scene holds."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from stage1_extract.demo.pace import Pace, Report, autocast
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import COLORS, GRID, IMAGE_SIZE, PATCH_SIZE, SHAPES
from stage1_extract.demo.teaching import IGNORED, Teaching, normalised

FEATURE_LAYER = -2
"""The hidden state that becomes LLaVA's raw features; the labels are read from the same hidden state."""
_WEIGHTS = {"color": 1.0, "shape": 2.0, "side": 1.0, "column": 1.0, "row": 0.5}
"""Weight of each label in the loss."""
_CHUNK = 200
"""Scenes that are encoded at a time."""


def tower_config(width: int, layers: int, heads: int) -> CLIPVisionConfig:
    """Return the config of a tower with LLaVA-1.5's geometry (24 x 24 patches and a CLS row) and a small width."""
    return CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
        image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=width,
    )  # fmt: skip


class Heads(nn.ModuleDict):
    """Linear read-outs of the labels, which are not part of the checkpoint."""

    def __init__(self, width: int) -> None:
        pairs = len(COLORS) * len(SHAPES)
        sizes = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "side": 3, "column": GRID, "row": GRID}
        sizes |= {"cls": pairs, "pooled": pairs}
        super().__init__({name: nn.Linear(width, size) for name, size in sizes.items()})


def train_tower(recipe: Recipe, lessons: Teaching, held_out: Teaching, report: Report) -> CLIPVisionModel:
    """Train a tower whose patches tell what and where they are, and whose CLS row attends to the objects."""
    tower: Any = CLIPVisionModel(tower_config(recipe.tower_width, recipe.layers, recipe.heads))
    tower.to(recipe.device)
    heads = Heads(recipe.tower_width).to(recipe.device)
    pace = Pace([*tower.parameters(), *heads.parameters()], recipe.learning_rate, recipe.tower_steps)
    order = torch.Generator().manual_seed(recipe.seed)
    for step in range(1, recipe.tower_steps + 1):
        chosen = torch.randint(recipe.scenes, (recipe.tower_batch,), generator=order).to(recipe.device)
        features, cls, pooled = _forward(tower, normalised(lessons.pixels[chosen]))
        pace.step(_loss(heads, lessons, chosen, features, cls, pooled))
        if step % recipe.report_every == 0 or step == recipe.tower_steps:
            report(phase="tower", step=step, **_accuracies(tower, heads, held_out))
    return tower.eval().requires_grad_(False)


@torch.no_grad()
def encode(tower: CLIPVisionModel, lessons: Teaching) -> Float[Tensor, "scene patch hidden"]:
    """Return the raw features of all scenes, in half precision so that they fit onto the device."""
    parts = [
        _forward(tower, normalised(lessons.pixels[first : first + _CHUNK]))[0].half()
        for first in range(0, len(lessons.pixels), _CHUNK)
    ]
    return torch.cat(parts)


def _forward(tower: CLIPVisionModel, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the patches and the CLS row of the feature layer, and the pooled output."""
    with autocast(pixels.device):
        output = tower(pixels, output_hidden_states=True)
    hidden = output.hidden_states[FEATURE_LAYER].float()
    return hidden[:, 1:], hidden[:, 0], output.pooler_output.float()


def _labels(lessons: Teaching, chosen: Tensor) -> dict[str, Tensor]:
    index = torch.arange(GRID, device=chosen.device)
    return {
        "color": lessons.color[chosen].long(),
        "shape": lessons.shape[chosen].long(),
        "side": lessons.side[chosen].long(),
        "column": index.repeat(GRID).expand(len(chosen), -1),
        "row": index.repeat_interleave(GRID).expand(len(chosen), -1),
    }


def _loss(heads: Heads, lessons: Teaching, chosen: Tensor, features: Tensor, cls: Tensor, pooled: Tensor) -> Tensor:
    loss = features.new_zeros(())
    for name, label in _labels(lessons, chosen).items():
        logits = heads[name](features).flatten(0, 1)
        loss = loss + _WEIGHTS[name] * F.cross_entropy(logits, label.flatten(), ignore_index=IGNORED)
    present = lessons.present[chosen].float()
    # The CLS row of the feature layer is trained too, so that its attention is informative for pruners.
    for name, row, weight in (("cls", cls, 2.0), ("pooled", pooled, 1.0)):
        loss = loss + weight * F.binary_cross_entropy_with_logits(heads[name](row), present)
    return loss


@torch.no_grad()
def _accuracies(tower: CLIPVisionModel, heads: Heads, held_out: Teaching) -> dict[str, float]:
    right: dict[str, list[Tensor]] = {}
    for first in range(0, len(held_out.pixels), _CHUNK):
        chosen = torch.arange(first, min(first + _CHUNK, len(held_out.pixels)), device=held_out.pixels.device)
        features, cls, _ = _forward(tower, normalised(held_out.pixels[chosen]))
        labels = _labels(held_out, chosen)
        on_object = labels["color"] > 0
        for name, label in labels.items():
            right.setdefault(name, []).append((heads[name](features).argmax(-1) == label)[on_object].float())
        same = (heads["cls"](cls) > 0) == (held_out.present[chosen] > 0)
        right.setdefault("cls_all_pairs_right", []).append(same.all(1).float())
    return {name: round(torch.cat(parts).mean().item(), 4) for name, parts in right.items()}
