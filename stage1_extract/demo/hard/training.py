"""Train both checkpoints of the harder benchmark: tower, features, the language model, and the deeper language model."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionModel

from stage1_extract.demo.hard.language_lessons import (
    PATCHES,
    Features,
    deepened,
    held_out_questions,
    new_reader,
    teach,
)
from stage1_extract.demo.hard.recipe import HardRecipe
from stage1_extract.demo.hard.resumable import Run, prepared
from stage1_extract.demo.hard.scenes import VARIED_CLUTTER, layout_of, pixels_of
from stage1_extract.demo.hard.tower_lessons import taught_tower
from stage1_extract.demo.hard.words import vocabulary
from stage1_extract.demo.language_lessons import DemoLanguageHalf, accuracy
from stage1_extract.demo.pace import autocast
from stage1_extract.demo.teaching import normalised
from stage1_extract.demo.tower_lessons import FEATURE_LAYER
from stage1_extract.demo.train_checkpoint import save_model, save_processor

MEASURED_BUDGETS = (PATCHES, 192, 128, 64, 32, 16, 0)
"""Budgets of the measurements after the training, in random tokens per image; 0 is the answer without the image."""
_CHUNK = 20
"""Scenes that are encoded at a time."""


def train(recipe: HardRecipe, folder: Path, log: Path) -> None:
    """Train and write both checkpoint folders, which stock transformers opens; see `Run` for the files.

    A run that was stopped at any moment goes on, and ends with the same weights on a CPU.
    """
    run = Run(recipe, folder, log)
    tower = taught_tower(run)
    features = encoded(run, tower, "features", recipe.seed, recipe.scenes)
    held_out = encoded(run, tower, "held-out", recipe.held_out_seed, recipe.held_out)
    first = new_reader(recipe, recipe.layers)
    teach(run, "language", first, recipe.learning_rate, recipe.language_steps, features, held_out)
    finish(run, "language", tower, first, folder / "checkpoint", held_out)
    second = deepened(recipe, first)
    teach(run, "deep-language", second, recipe.deep_learning_rate, recipe.deep_steps, features, held_out)
    finish(run, "deep-language", tower, second, folder / "deep" / "checkpoint", held_out)


def encoded(run: Run, tower: CLIPVisionModel, name: str, seed: int, scenes: int) -> Features:
    """Encode scenes into a file of half-precision features, and map this file."""
    path, saved = run.state / f"{name}.npy", run.load(name)
    done = saved["step"] if saved else 0
    shape = (scenes, PATCHES, tower.config.hidden_size)
    array = np.lib.format.open_memmap(path, "r+" if done else "w+", np.float16, shape)
    chunks = -(-scenes // _CHUNK)
    for chunk, pixels in enumerate(_pictures(run.recipe, seed, scenes, done, chunks), start=done):
        array[chunk * _CHUNK : chunk * _CHUNK + len(pixels)] = _features(tower, pixels.to(run.recipe.device)).numpy()
        if (chunk + 1) % 50 == 0 or chunk + 1 == chunks:
            array.flush()
            if chunk + 1 == chunks:
                run.report(phase=name, scenes=scenes)
            run.save(name, chunk + 1)
    features = torch.from_numpy(array)
    return features if run.recipe.device == "cpu" else features.to(run.recipe.device)


def _pictures(recipe: HardRecipe, seed: int, scenes: int, done: int, chunks: int) -> Iterable[Tensor]:
    """Draw the scenes of the chunks that are not done."""
    return prepared(partial(_picture_chunk, seed, scenes), done, chunks - 1, recipe.workers) if done < chunks else ()


def _picture_chunk(seed: int, scenes: int, chunk: int) -> Tensor:
    indices = range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, scenes))
    drawn = [pixels_of(layout_of(seed, index, VARIED_CLUTTER), seed, index) for index in indices]
    return torch.from_numpy(np.stack(drawn))


@torch.no_grad()
def _features(tower: Any, pixels: Tensor) -> Tensor:
    with autocast(pixels.device):
        hidden = tower(normalised(pixels), output_hidden_states=True).hidden_states[FEATURE_LAYER]
    return hidden[:, 1:].half().cpu()


def finish(
    run: Run, phase: str, tower: CLIPVisionModel, reader: DemoLanguageHalf, out: Path, held_out: Features
) -> None:
    """Write a checkpoint in 16 bit, and log what the model answers from random patches and from those of the questions."""
    if run.load(f"{phase}-measured"):
        return
    save_processor(out, vocabulary())
    save_model(tower, reader, out, torch.float16)
    recipe, asked = run.recipe, held_out_questions(run.recipe, len(held_out))
    scores = {str(keep): accuracy(recipe.seed, reader, held_out, asked, keep) for keep in MEASURED_BUDGETS}
    run.report(phase=f"{phase}: random patches", **scores)
    region = torch.zeros(len(held_out), PATCHES, dtype=torch.bool, device=held_out.device)
    best: dict[str, Any] = {str(keep): {} for keep in (32, 16)}
    for kind in range(len(asked[0])):
        one = [[scene[kind]] for scene in asked]
        for scene, (question,) in enumerate(one):
            region[scene] = False
            region[scene, list(question.patches)] = True
        for keep, scores in best.items():
            scores |= accuracy(recipe.seed, reader, held_out, one, int(keep), region)
            scores.pop("all")
    run.report(phase=f"{phase}: patches that a question is about first", **best)
    run.save(f"{phase}-measured", 0)
