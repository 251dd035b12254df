"""Train the tower of the harder benchmark on labels of every patch and on the things that a scene holds.

Most lessons are windows of scenes, with the fitting slice of the position embeddings, because a step on whole images takes a
CPU several times as long.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import CLIPVisionModel

from stage1_extract.demo.hard.labels import CLASSES, THINGS, dense_labels, things
from stage1_extract.demo.hard.recipe import HardRecipe
from stage1_extract.demo.hard.resumable import Run, learn, prepared
from stage1_extract.demo.hard.scenes import VARIED_CLUTTER, layout_of, pixels_of
from stage1_extract.demo.pace import autocast
from stage1_extract.demo.scenes import GRID, PATCH_SIZE
from stage1_extract.demo.teaching import IGNORED, normalised
from stage1_extract.demo.tower_lessons import FEATURE_LAYER, tower_config

FIRST_SCENE = 10_000_000
"""Number of the first scene that the tower learns from; the language models learn from the scenes from 0 on."""
_WEIGHTS = {
    "color": 1.0, "shape": 2.0, "size": 1.0, "texture": 1.0, "glyph": 2.0, "middle": 0.5, "distractor": 0.5,
    "column": 0.5, "row": 0.5,
}  # fmt: skip
"""Weight of each label in the loss."""
_PRESENCE_WEIGHT, _BACKGROUND_WEIGHT, _GLYPH_WEIGHT = 3.0, 0.5, 5.0
"""Weights of the CLS row's lesson, of patches without an object, and of patches with a glyph."""


@dataclass(frozen=True)
class TowerLesson:
    """Windows of scenes, of one size."""

    pixels: UInt8[Tensor, "window height width 3"]
    index: Int[Tensor, "window row"]
    """Positions of the CLS row (0) and of each patch."""
    labels: dict[str, Int[Tensor, "window patch"]]
    weight: Float[Tensor, "window patch"]
    """Weight of each patch that shows an object or a sign; 0 elsewhere."""
    present: Float[Tensor, "window thing"]

    def to(self, device: str) -> "TowerLesson":
        """Return the lesson on a device."""
        labels = {name: label.to(device) for name, label in self.labels.items()}
        return TowerLesson(
            self.pixels.to(device), self.index.to(device), labels, self.weight.to(device), self.present.to(device)
        )


class TowerPupil(nn.Module):
    """The tower, and linear read-outs of the labels, which are not part of the checkpoint."""

    def __init__(self, recipe: HardRecipe) -> None:
        super().__init__()
        width = recipe.tower_width
        self.tower: Any = CLIPVisionModel(tower_config(width, recipe.tower_layers, recipe.heads))
        sizes = CLASSES | {"cls": THINGS, "pooled": THINGS}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})


def taught_tower(run: Run) -> CLIPVisionModel:
    """Train a tower whose patches tell what and where they are, and whose CLS row attends to objects and distractors."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed)
    pupil, steps = TowerPupil(recipe).to(recipe.device), recipe.window_steps + recipe.image_steps

    def lessons(first: int) -> Iterable[TowerLesson]:
        return prepared(partial(tower_lesson, recipe), first, steps, recipe.workers)

    def loss_of(lesson: TowerLesson) -> Tensor:
        return _loss(pupil, lesson.to(recipe.device))

    learn(run, "tower", pupil, recipe.learning_rate, steps, lessons, loss_of, partial(_accuracies, pupil, recipe))
    return pupil.tower.eval().requires_grad_(False)


def tower_lesson(recipe: HardRecipe, step: int) -> TowerLesson:
    """Prepare the lesson of a step: windows, or whole images in the last steps."""
    if step <= recipe.window_steps:
        first = FIRST_SCENE + step * recipe.window_scenes
        scenes = range(first, first + recipe.window_scenes)
        return windows_of(recipe.seed, scenes, recipe.windows_per_scene, recipe.window)
    first = FIRST_SCENE + step * max(recipe.window_scenes, recipe.image_scenes)
    return windows_of(recipe.seed, range(first, first + recipe.image_scenes), 1, GRID)


def windows_of(seed: int, scenes: range, windows: int, edge: int) -> TowerLesson:
    """Cut random windows of `edge` patches out of freshly drawn scenes."""
    parts = [part for index in scenes for part in _cut(seed, index, windows, edge)]
    pixels, positions, labels, weights, present = zip(*parts, strict=True)
    return TowerLesson(
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(positions)),
        {name: torch.from_numpy(np.stack([label[name] for label in labels])) for name in CLASSES},
        torch.from_numpy(np.stack(weights)),
        torch.from_numpy(np.stack(present)),
    )


def _cut(seed: int, index: int, windows: int, edge: int) -> Iterable[tuple[Any, ...]]:
    rng = np.random.default_rng([seed, index, 4])
    layout = layout_of(seed, index, VARIED_CLUTTER)
    pixels, (labels, weight), there = pixels_of(layout, seed, index), dense_labels(layout), things(layout)
    positions = np.arange(GRID * GRID).reshape(GRID, GRID)
    for row, column in rng.integers(0, GRID - edge + 1, (windows, 2)).tolist():
        part = slice(row, row + edge), slice(column, column + edge)
        scale = [slice(cut.start * PATCH_SIZE, cut.stop * PATCH_SIZE) for cut in part]
        inside = positions[part].ravel()
        present = np.zeros(THINGS, np.float32)
        present[[thing for thing, patch in there if patch in inside]] = 1
        cut_labels = {name: label[part].ravel() for name, label in labels.items()}
        yield pixels[tuple(scale)], np.r_[0, 1 + inside], cut_labels, weight[part].ravel(), present


def _forward(tower: Any, lesson: TowerLesson) -> tuple[Tensor, Tensor | None]:
    """Return the hidden state of the feature layer, and of whole images also the pooled output."""
    pixels = normalised(lesson.pixels)
    with autocast(pixels.device):
        if lesson.index.shape[1] == 1 + GRID * GRID:
            output = tower(pixels, output_hidden_states=True)
            return output.hidden_states[FEATURE_LAYER].float(), output.pooler_output.float()
        return encode_windows(tower, pixels, lesson.index).float(), None


def encode_windows(
    tower: Any, pixels: Float[Tensor, "window 3 height width"], index: Int[Tensor, "window row"]
) -> Float[Tensor, "window row hidden"]:
    """Return the hidden state of the feature layer, with the position embeddings of the windows' patches.

    The layers behind the feature layer are not run: they learn from whole images alone.
    """
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    rows = torch.cat([embeddings.class_embedding.expand(len(pixels), 1, -1), patches], 1)
    hidden = tower.pre_layrnorm(rows + embeddings.position_embedding(index))
    for layer in tower.encoder.layers[: FEATURE_LAYER + 1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def _loss(pupil: TowerPupil, lesson: TowerLesson) -> Tensor:
    hidden, pooled = _forward(pupil.tower, lesson)
    loss = _PRESENCE_WEIGHT * F.binary_cross_entropy_with_logits(pupil.heads["cls"](hidden[:, 0]), lesson.present)
    if pooled is not None:
        loss = loss + F.binary_cross_entropy_with_logits(pupil.heads["pooled"](pooled), lesson.present)
    background = (lesson.weight == 0).float()
    background = _BACKGROUND_WEIGHT * background / background.sum()
    glyph = lesson.weight * torch.where(lesson.labels["glyph"] > 0, _GLYPH_WEIGHT, 1.0)
    for name, label in lesson.labels.items():
        logits = pupil.heads[name](hidden[:, 1:]).flatten(0, 1)
        errors = F.cross_entropy(logits, label.flatten(), ignore_index=IGNORED, reduction="none").view(label.shape)
        if name in ("distractor", "column", "row"):
            loss = loss + _WEIGHTS[name] * errors.mean()
        else:
            weight = glyph if name == "glyph" else lesson.weight
            loss = loss + _WEIGHTS[name] * (errors * (weight / weight.sum().clamp_min(1) + background)).sum()
    return loss


@torch.no_grad()
def _accuracies(pupil: TowerPupil, recipe: HardRecipe, step: int) -> dict[str, float]:
    """Measure each label on patches of objects of held-out scenes, and the things on the CLS row; see `TowerLesson`."""
    edge = recipe.window if step <= recipe.window_steps else GRID
    right: dict[str, list[Tensor]] = {}
    for first in range(0, recipe.held_out // 2, 20):
        scenes = range(first, min(first + 20, recipe.held_out // 2))
        lesson = windows_of(recipe.held_out_seed, scenes, 1, edge).to(recipe.device)
        hidden, _ = _forward(pupil.tower, lesson)
        shown, tiny = lesson.weight > 0, lesson.labels["size"] == 1
        hits = {name: pupil.heads[name](hidden[:, 1:]).argmax(-1) == label for name, label in lesson.labels.items()}
        for name, hit in hits.items():
            right.setdefault(name, []).append(hit[shown])
        right.setdefault("glyph_where_one_is", []).append(hits["glyph"][lesson.labels["glyph"] > 0])
        right.setdefault("tiny_color", []).append(hits["color"][tiny])
        right.setdefault("tiny_shape", []).append(hits["shape"][tiny])
        right.setdefault("large_shape", []).append(hits["shape"][lesson.labels["size"] == 3])
        right.setdefault("background", []).append((hits["color"] & hits["distractor"])[~shown])
        guessed = pupil.heads["cls"](hidden[:, 0]) > 0
        right.setdefault("things_found", []).append(guessed[lesson.present > 0])
        right.setdefault("things_absent", []).append(~guessed[lesson.present == 0])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}
