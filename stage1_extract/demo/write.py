"""Write the demo's data set as ordinary files, images and a JSONL of questions, like a user's own data set."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.files.atomic import write_atomically
from configs.progress import ProgressBar
from stage1_extract.demo.card import CARD, data_card
from stage1_extract.demo.questions import SceneQuestion, questions
from stage1_extract.demo.recipe import Recipe
from stage1_extract.demo.scenes import scene

QUESTIONS_PER_SCENE = 5
SPLIT_STRIDE = 1_000_000
"""The scene numbers of each split begin at a multiple of this number, so that splits share no scene, whatever their sizes."""
UNFINISHED = "{}\n"
"""Content of `dataset.json` until everything else is written; it marks a folder that this command may write again."""


@dataclass(frozen=True)
class World:
    """What a data set is drawn from."""

    scene: Callable[[int, int], Any]
    """Draws scene number `index` of a `seed`; the result has the `image`."""
    questions: Callable[[Any, int, int], list[SceneQuestion]]
    """Asks about that scene, given the scene, `seed` and `index`."""
    training_seed: int
    """Seed of the scenes that the world's checkpoints learned from; a data set must have another."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else the scenes depend on; `dataset.json` records these settings."""


DEMO = World(scene, questions, Recipe().seed)
"""The demo's scenes of two to four shapes."""


def write_dataset(out: Path, counts: dict[str, int], seed: int, world: World = DEMO) -> bool:
    """Write `counts[split]` questions per split under `out`; return False if `out` holds exactly this data set already.

    out/
      images/<split>_<scene>.png
      questions.jsonl       beside README.md, the data's card
      dataset.json          seed and counts; UNFINISHED until everything else is written

    Raises ConfigError (exit 2) if the folder holds other files.
    """
    settings = json.dumps({"seed": seed, "questions": counts} | world.settings, indent=2) + "\n"
    marker = out / "dataset.json"
    if marker.is_file() and marker.read_text(encoding="utf-8") == settings:
        return False
    if not marker.is_file() and out.is_dir() and any(out.iterdir()):
        raise ConfigError(
            f"expected a folder of this demo or no folder at {out}, it holds other files: name another folder, or remove it"
        )
    write_atomically(marker, UNFINISHED)
    shutil.rmtree(out / "images", ignore_errors=True)
    (out / "images").mkdir(parents=True)
    rows: list[dict[str, object]] = []
    scenes = [(split, n) for split, count in counts.items() for n in range(math.ceil(count / QUESTIONS_PER_SCENE))]
    for split, number in ProgressBar(scenes, "scenes", unit="images"):
        index = list(counts).index(split) * SPLIT_STRIDE + number
        name = f"{split}_{number:05d}.png"
        drawn = world.scene(seed, index)
        drawn.image.save(out / "images" / name)
        left = counts[split] - number * QUESTIONS_PER_SCENE
        rows += [_row(split, number, name, question) for question in world.questions(drawn, seed, index)[:left]]
    write_atomically(out / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(out / CARD, data_card(seed, counts))
    write_atomically(marker, settings)
    return True


def _row(split: str, number: int, image: str, question: SceneQuestion) -> dict[str, object]:
    """Return the row of a question about scene `number` of a split."""
    return {
        "question_id": f"{split}_{number:05d}_{question.kind}",
        "image": image,
        "question": question.text,
        "answers": [question.answer],
        "choices": question.choices,
        "kind": question.kind,
        "split": split,
        "patches": question.patches,
    }
