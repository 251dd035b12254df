"""Copies of a sound store that hold other features, through the store's own writer: their fingerprints lie."""

import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.experiment import Experiment
from stage1_extract.extract import extract
from store.reading.reader import FeatureStore
from tests.helpers import stores
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_images

Rows = np.ndarray[Any, Any]


def edit_processor(checkpoint: Path, **fields: object) -> None:
    """Change fields of a checkpoint's image processor."""
    for path in checkpoint.glob("*processor_config.json"):
        content = json.loads(path.read_text())
        holder = content.get("image_processor", content)
        holder |= fields
        path.write_text(json.dumps(content))


def through_jpeg(image: Image.Image) -> Image.Image:
    """Write and read again, as Pillow does by default."""
    file = BytesIO()
    image.save(file, "JPEG")
    return Image.open(file).convert("RGB")


PICTURES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pictures mirrored left to right": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "pictures turned by 90 degrees": lambda image: image.rotate(90, expand=True),
    "pictures turned by 180 degrees": lambda image: image.rotate(180),
    "pictures turned by 270 degrees": lambda image: image.rotate(270, expand=True),
    "channels in the order BGR": lambda image: Image.fromarray(np.asarray(image)[:, :, ::-1].copy()),
    "pictures went through JPEG of quality 75": through_jpeg,
}
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "resampled bilinear instead of bicubic": lambda folder: edit_processor(folder, resample=2),
    "normalised by 0.5 mean and std": lambda folder: edit_processor(folder, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    "squeezed to a square instead of cropped": lambda folder: edit_processor(
        folder, do_center_crop=False, size={"height": 56, "width": 56}
    ),
    "layer -1 (= last_hidden_state) instead of -2": lambda folder: edit_config(folder, vision_feature_layer=-1),
    "layer -3 instead of -2": lambda folder: edit_config(folder, vision_feature_layer=-3),
}


def through_float16(arrays: dict[str, Rows]) -> None:
    """Round the raw features alone."""
    arrays["raw"] = arrays["raw"].astype(np.float16).astype(np.float32)


def halved(arrays: dict[str, Rows]) -> None:
    """Scale the raw features alone."""
    arrays["raw"] = arrays["raw"] * np.float32(0.5)


def reordered(order: Callable[[int], Rows]) -> Callable[[dict[str, Rows]], None]:
    """Lay the patches of both token arrays in another order."""

    def change(arrays: dict[str, Rows]) -> None:
        for name in ("raw", "projected"):
            arrays[name] = arrays[name][:, order(arrays[name].shape[1])]

    return change


def swapped(arrays: dict[str, Rows]) -> None:
    """Let the second and the last image change places."""
    for rows in arrays.values():
        rows[[1, -1]] = rows[[-1, 1]]


ARRAYS: dict[str, Callable[[dict[str, Rows]], None]] = {
    "raw went through float16": through_float16,
    "values multiplied by 0.5": halved,
    "patches column by column (transposed)": reordered(lambda n: np.arange(n).reshape(-1, int(n**0.5)).T.reshape(-1)),
    "patches permuted, in an order that has no name": reordered(lambda n: np.random.default_rng(5).permutation(n)),
    "rows hold the features of other images": swapped,
}


def contents(store: Path) -> dict[str, Rows]:
    """Return all rows of all arrays."""
    opened = FeatureStore.open(store)
    return {name: opened.gather(name, opened.committed_rows).copy() for name in opened.arrays}


def put(store: Path, arrays: dict[str, Rows]) -> Path:
    """Let a store hold other rows; files, checksums and commit records are valid again afterwards."""

    def give(values: Rows) -> Callable[[Rows], Rows]:
        left = iter(values)
        return lambda rows: np.stack([next(left) for _ in rows])

    stores.rewrite(store, {name: give(values) for name, values in arrays.items()})
    return store


def damaged(sound: Path, to: Path, change: Callable[[dict[str, Rows]], None]) -> Path:
    """Copy a store and change its rows in place."""
    arrays = contents(sound)
    change(arrays)
    return put(stores.copy(sound, to), arrays)


class Home:
    """A checkpoint, its images, and a sound store of them."""

    def __init__(self, folder: Path, images: int = 5, **model: Any) -> None:
        self.folder, self._images, self._model = folder, images, model
        self._made: dict[tuple[str, ...], dict[str, Rows]] = {}
        tiny_llava(folder / "checkpoint", **model)
        tiny_images(folder / "images", images)
        extract(self.experiment(), overwrite=False)

    def experiment(self, store: Path | None = None, dtype: str = "float32", **data: Any) -> Experiment:
        """Return the config that made the sound store, or that names another one."""
        arrays = ["raw", "projected", "cls_hidden", "cls_attention"]
        return Experiment.model_validate(
            {
                "name": "tiny",
                "run_dir": self.folder / "run",
                "model": {"checkpoint": str(data.pop("checkpoint", self.folder / "checkpoint")), "device": "cpu", "dtype": dtype},
                "data": {"images": self.folder / "images"} | data,
                "store": {"path": store or self.folder / "store", "shard_images": 2, "arrays": arrays},
            }
        )  # fmt: skip

    def wrong(self, causes: tuple[str, ...], to: Path) -> Path:
        """Return a copy of the sound store whose contents the causes explain and whose fingerprints are the sound one's."""
        made = tuple(cause for cause in causes if cause in PICTURES or cause in CHECKPOINTS)
        arrays = {name: rows.copy() for name, rows in self.encoded(made).items()}
        for cause in (cause for cause in ARRAYS if cause in causes):
            ARRAYS[cause](arrays)
        return put(stores.copy(self.folder / "store", to), arrays)

    def encoded(self, causes: tuple[str, ...]) -> dict[str, Rows]:
        """Return what an extraction makes of pictures and a checkpoint that the causes changed."""
        if causes not in self._made:
            folder = self.folder / f"made-{len(self._made)}"
            checkpoint = tiny_llava(folder / "checkpoint", **self._model)
            shutil.copytree(self.folder / "images", folder / "images")
            for cause in causes:
                if cause in CHECKPOINTS:
                    CHECKPOINTS[cause](checkpoint)
                for path in (folder / "images").iterdir() if cause in PICTURES else ():
                    PICTURES[cause](Image.open(path)).save(path)
            extract(self.experiment(folder / "store", checkpoint=checkpoint, images=folder / "images"), overwrite=False)
            self._made[causes] = contents(folder / "store")
        return self._made[causes]
