"""Train the language models of the harder benchmark on cached features, mostly on some random patches of each scene.

The patches are dropped uniformly at random or in random blocks, whatever they show, and the questions are about what the
others show: so every answer can be seen, and a step costs a fraction of one on all patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stage1_extract.demo.hard.objects import Layout
from stage1_extract.demo.hard.questions import KINDS, ask, questions
from stage1_extract.demo.hard.recipe import HardRecipe
from stage1_extract.demo.hard.resumable import Run, learn, prepared
from stage1_extract.demo.hard.scenes import VARIED_CLUTTER, layout_of
from stage1_extract.demo.hard.words import tokenise, vocabulary
from stage1_extract.demo.language_lessons import (
    DemoLanguageHalf,
    PackedScenes,
    accuracy,
    answer_logits,
    language_config,
    pack,
)
from stage1_extract.demo.scenes import GRID
from stage1_extract.demo.teaching import TokenisedQuestion

PATCHES = GRID * GRID
_KIND_SHARES = (0.2, 0.2, 0.2, 0.25, 0.15)
"""How often each kind is asked, in the order of KINDS."""
_BLOCKS = (2, 3, 4, 6, 8)
"""Edges of the blocks that patches are dropped in, in patches."""

Features = Float[Tensor, "scene patch hidden"]


@dataclass(frozen=True)
class LanguageLesson:
    """Questions about some scenes, and the patches that the language model is given of each."""

    scenes: Int[Tensor, " scene"]
    """Numbers of the scenes."""
    kept: Int[Tensor, "scene kept"]
    packed: PackedScenes


def new_reader(recipe: HardRecipe, layers: int) -> DemoLanguageHalf:
    """Return a projector and a language model with random weights."""
    torch.manual_seed(recipe.seed)
    config = language_config(len(vocabulary()), recipe.language_width, layers, recipe.heads)
    return DemoLanguageHalf(recipe.tower_width, config)


def deepened(recipe: HardRecipe, reader: DemoLanguageHalf) -> DemoLanguageHalf:
    """Return a deeper language model that answers as `reader` does until it learns on.

    The layers of `reader` are spread out. Between them lie copies that add nothing at first, because the weights by which
    they write are zero. The projector stays as it is, so that both models read the same store.
    """
    deep = new_reader(recipe, recipe.deep_layers)
    layers: Any = deep.language.model.layers
    given = reader.language.model.layers
    places = np.linspace(0, len(layers) - 1, len(given)).round().astype(int).tolist()
    outside = {name: weight for name, weight in reader.state_dict().items() if ".layers." not in name}
    deep.load_state_dict(outside, strict=False)
    for number, layer in enumerate(layers):
        source = max(n for n, place in enumerate(places) if place <= number)
        layer.load_state_dict(given[source].state_dict())
        if number not in places:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    for projector in (deep.linear_1, deep.linear_2):
        projector.requires_grad_(False)
    return deep


def teach(
    run: Run, phase: str, reader: DemoLanguageHalf, peak: float, steps: int, features: Features,
    held_out: Float[Tensor, "held_out patch hidden"],
) -> DemoLanguageHalf:  # fmt: skip
    """Train a language model that answers from the image, also when most of the image's tokens are gone."""
    recipe = run.recipe
    reader.to(recipe.device)
    asked = held_out_questions(recipe, len(held_out))

    def lessons(first: int) -> Iterable[LanguageLesson]:
        return prepared(partial(language_lesson, recipe, phase, steps), first, steps, recipe.workers)

    def loss_of(lesson: LanguageLesson) -> Tensor:
        packed = PackedScenes(*(part.to(recipe.device) for part in vars(lesson.packed).values()))
        raw = features[lesson.scenes.to(features.device)].to(recipe.device).float()
        logits, right = answer_logits(reader, raw, lesson.kept.to(recipe.device), packed)
        return F.cross_entropy(logits, right)

    def measure(step: int) -> dict[str, Any]:
        return {str(keep): accuracy(recipe.seed, reader, held_out, asked, keep) for keep in (PATCHES, 64)}

    learn(run, phase, reader, peak, steps, lessons, loss_of, measure)
    return reader.eval()


def language_lesson(recipe: HardRecipe, phase: str, steps: int, step: int) -> LanguageLesson:
    """Prepare the lesson of a step."""
    words = vocabulary()
    rng = np.random.default_rng([recipe.seed, len(phase), step])
    whole = recipe.whole_share if step < 0.85 * steps else recipe.whole_share_at_end
    keep = PATCHES if rng.random() < whole else int(rng.choice(recipe.budgets, p=recipe.budget_shares))
    scenes = rng.integers(0, recipe.scenes, recipe.language_scenes)
    kept = [random_patches(keep, rng) for _ in scenes]
    asked: list[list[TokenisedQuestion]] = []
    for index, patches in zip(scenes.tolist(), kept, strict=True):
        shown = layout_to_learn(recipe.seed, index).shown_by(set(patches.tolist()))
        asked.append([tokenise(question, words) for question in _different(shown, recipe.questions_per_scene, rng)])
    return LanguageLesson(torch.from_numpy(scenes), torch.from_numpy(np.stack(kept)), pack(asked, PATCHES + 2, "cpu"))


@cache
def layout_to_learn(seed: int, index: int) -> Layout:
    """Lay out a scene that the language models learn from."""
    return layout_of(seed, index, VARIED_CLUTTER)


def _different(layout: Layout, count: int, rng: np.random.Generator) -> list[Any]:
    """Ask up to `count` different questions, of random kinds."""
    kinds = rng.choice(KINDS, 2 * count, p=_KIND_SHARES).tolist()
    drawn = (ask(kind, layout, rng) for kind in kinds)
    return list({question.text: question for question in drawn if question}.values())[:count]


def random_patches(keep: int, rng: np.random.Generator) -> Int[np.ndarray, " {keep}"]:
    """Draw `keep` patches, in ascending order: uniformly, or in blocks at a random place, either in half of the cases."""
    score = rng.random(PATCHES)
    if rng.random() < 0.5:
        edge = int(rng.choice(_BLOCKS))
        rows, columns = (np.arange(GRID) + rng.integers(edge) for _ in range(2))
        blocks = rng.permutation((GRID // edge + 2) ** 2).reshape(GRID // edge + 2, -1)
        score += blocks[rows[:, None] // edge, columns // edge].ravel()
    return np.sort(np.argpartition(score, PATCHES - keep)[PATCHES - keep :])


def held_out_questions(recipe: HardRecipe, scenes: int) -> list[list[TokenisedQuestion]]:
    """Ask about the scenes to measure on, one question of each kind."""
    words, seed = vocabulary(), recipe.held_out_seed
    return [
        [tokenise(question, words) for question in questions(layout_of(seed, index, VARIED_CLUTTER), seed, index)]
        for index in range(scenes)
    ]
