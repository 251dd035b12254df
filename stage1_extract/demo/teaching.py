"""Prepare scenes to learn from: pixels, labels of every patch, and tokenised questions."""

import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from stage1_extract.demo.questions import questions
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import COLORS, GRID, IMAGE_SIZE, SHAPES, SceneObject, scene
from stage1_extract.demo.words import tokenizer, vocabulary

IGNORED = -100
"""Label of a patch that shows only part of an object; the patch counts neither as background nor as object."""
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_ROUNDS = 4
"""Number of questions of each kind that are prepared per scene."""
_CHUNK = 250
"""Scenes that are drawn, and moved to the device, at a time."""


@dataclass(frozen=True)
class TokenisedQuestion:
    """A tokenised question; see SceneQuestion."""

    kind: str
    question: tuple[int, ...]
    """Token ids of the question."""
    answer: int
    """Token id of the answer."""
    patches: tuple[int, ...]


@dataclass(frozen=True)
class Teaching:
    """A set of scenes on the training device. Labels of patches are 0 for background, or IGNORED."""

    pixels: UInt8[Tensor, "scene height width 3"]
    color: Int8[Tensor, "scene patch"]
    shape: Int8[Tensor, "scene patch"]
    side: Int8[Tensor, "scene patch"]
    """1 where the patch's object is in the left half of the image, 2 in the right half."""
    present: Int8[Tensor, "scene pair"]
    """1 for each pair of colour and shape that is in the scene, else 0."""
    asked: list[list[TokenisedQuestion]]
    """Questions by scene."""


def teaching(recipe: Recipe, seed: int, count: int) -> Teaching:
    """Draw `count` scenes in worker processes, through a memory-mapped file, and move them to the device."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels"
        shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
        np.memmap(path, np.uint8, "w+", shape=shape).flush()
        jobs = [(path, shape, seed, first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]
        with get_context("spawn").Pool(recipe.workers) as pool:
            parts = pool.map(_draw, jobs, chunksize=1)
        drawn = np.memmap(path, np.uint8, "r", shape=shape)
        pixels = torch.empty(shape, dtype=torch.uint8, device=recipe.device)
        for first in range(0, count, _CHUNK):
            pixels[first : first + _CHUNK] = torch.from_numpy(np.array(drawn[first : first + _CHUNK]))
    labels: list[Any] = [
        torch.from_numpy(np.concatenate([part[0][k] for part in parts])).to(recipe.device) for k in range(4)
    ]
    asked = [asked for part in parts for asked in part[1]]
    return Teaching(pixels, labels[0], labels[1], labels[2], labels[3], asked)


def normalised(pixels: UInt8[Tensor, "scene height width 3"]) -> Float[Tensor, "scene 3 height width"]:
    """Normalise pixels as the checkpoint's image processor does."""
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _draw(job: tuple[Path, tuple[int, ...], int, int, int]) -> tuple[list[np.ndarray], list[list[TokenisedQuestion]]]:
    """Draw a range of scenes into the memory-mapped file; return their labels and questions."""
    path, shape, seed, first, last = job
    pixels = np.memmap(path, np.uint8, "r+", shape=shape)
    encode = tokenizer(vocabulary())
    labels, asked = [], []
    for index in range(first, last):
        drawn = scene(seed, index)
        pixels[index] = np.asarray(drawn.image)
        labels.append(_labels(drawn.objects))
        rounds = [question for r in range(_ROUNDS) for question in questions(drawn, seed + r, index)]
        ids = encode([q.text for q in rounds], add_special_tokens=False)["input_ids"]
        answers: Any = encode.convert_tokens_to_ids([q.answer for q in rounds])
        asked.append(
            [TokenisedQuestion(q.kind, tuple(i), a, q.patches) for q, i, a in zip(rounds, ids, answers, strict=True)]
        )
    return [np.stack(part) for part in zip(*labels, strict=True)], asked


def _labels(objects: tuple[SceneObject, ...]) -> tuple[np.ndarray, ...]:
    """Return colour, shape and side of every patch, and the pairs of colour and shape that are present."""
    cover = np.stack([item.cover().ravel() for item in objects])
    owner, share = cover.argmax(0), cover.max(0)
    colors = np.array([list(COLORS).index(item.color) + 1 for item in objects], np.int8)
    shapes = np.array([SHAPES.index(item.shape) + 1 for item in objects], np.int8)
    sides = np.array([1 if item.side == "left" else 2 for item in objects], np.int8)
    dense = [np.where(share >= 0.5, values[owner], 0).astype(np.int8) for values in (colors, shapes, sides)]
    for label in dense:
        label[(share > 0.02) & (share < 0.5)] = IGNORED
    present = np.zeros(len(COLORS) * len(SHAPES), np.int8)
    present[(colors - 1) * len(SHAPES) + shapes - 1] = 1
    assert dense[0].shape == (GRID * GRID,)
    return (*dense, present)
