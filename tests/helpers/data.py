"""Small image folders and questions about them."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = ("red", "green", "blue")


def tiny_images(folder: Path, count: int, size: int = 64, seed: int = 0) -> list[str]:
    """`count` distinct PNGs of noise; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"image_{number:03d}.png" for number in range(count)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (size, size + 8, 3), dtype=np.uint8)).save(folder / name)
    return names


def tiny_questions(folder: Path, images: int = 9, per_image: int = 2) -> Path:
    """`images/` and `questions.jsonl` under `folder`, a third of the images in each split."""
    names = tiny_images(folder / "images", images)
    rows = [
        {
            "question_id": f"{name}/{number}",
            "image": name,
            "question": ("what color is it ?", "is it red ?")[number % 2],
            "answers": [COLORS[place % 3] if number % 2 == 0 else ("yes", "no")[place % 2]],
            "choices": list(COLORS) if number % 2 == 0 else ["yes", "no"],
            "kind": ("color", "is")[number % 2],
            "split": ("train", "val", "test")[place % 3],
        }
        for place, name in enumerate(names)
        for number in range(per_image)
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def come(folder: Path, numbers: range) -> None:
    """Let images of `folder/more` appear in `folder/images`."""
    for number in numbers:
        shutil.copy(folder / "more" / f"image_{number:03d}.png", folder / "images")
