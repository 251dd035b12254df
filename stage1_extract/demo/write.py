"""Write the demo's data set as ordinary files, images and a JSONL of questions, like a user's own data set."""

import json
import math
import shutil
from pathlib import Path

from configs.errors import ConfigError
from configs.files.atomic import write_atomically
from configs.progress import ProgressBar
from stage1_extract.demo.card import CARD, data_card
from stage1_extract.demo.questions import questions
from stage1_extract.demo.scenes import scene

QUESTIONS_PER_SCENE = 5
SPLIT_STRIDE = 1_000_000
"""The scene numbers of each split begin at a multiple of this number, so that splits share no scene, whatever their sizes."""
UNFINISHED = "{}\n"
"""Content of `dataset.json` until everything else is written; it marks a folder that this command may write again."""


def write_dataset(out: Path, counts: dict[str, int], seed: int) -> bool:
    """Write `counts[split]` questions per split under `out`; return False if `out` holds exactly this data set already.

    out/
      images/<split>_<scene>.png
      questions.jsonl       beside README.md, the data's card
      dataset.json          seed and counts; UNFINISHED until everything else is written

    Raises ConfigError (exit 2) if the folder holds other files.
    """
    settings = json.dumps({"seed": seed, "questions": counts}, indent=2) + "\n"
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
        drawn = scene(seed, index)
        drawn.image.save(out / "images" / name)
        for question in questions(drawn, seed, index)[: counts[split] - number * QUESTIONS_PER_SCENE]:
            rows.append(
                {
                    "question_id": f"{split}_{number:05d}_{question.kind}",
                    "image": name,
                    "question": question.text,
                    "answers": [question.answer],
                    "choices": question.choices,
                    "kind": question.kind,
                    "split": split,
                    "patches": question.patches,
                }
            )
    write_atomically(out / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_atomically(out / CARD, data_card(seed, counts))
    write_atomically(marker, settings)
    return True
