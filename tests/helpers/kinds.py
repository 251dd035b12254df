"""Ways to make another kind of checkpoint of a good one, for the tests of what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoints import edit_config

Change = Callable[[Path], object]
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    """Change the tensors of the one file of weights."""

    def apply(folder: Path) -> None:
        content = load_file(folder / SINGLE)
        change(content)
        save_file(content, folder / SINGLE, {"format": "pt"})

    return apply


def renamed(rename: Callable[[str], str]) -> Change:
    """Call every tensor by another name."""

    def apply(folder: Path) -> None:
        content = {rename(name): tensor for name, tensor in load_file(folder / SINGLE).items()}
        save_file(content, folder / SINGLE, {"format": "pt"})

    return apply


def wrote(name: str, content: Any) -> Change:
    """Lay a file of text, or of JSON, beside the others."""
    return lambda folder: (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def all_of(*changes: Change) -> Change:
    """One change after the other."""
    return lambda folder: [change(folder) for change in changes]


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def edited(**fields: Any) -> Change:
    """Lay fields over those of config.json."""
    return lambda folder: edit_config(folder, **fields)


def edited_in(name: str, **fields: Any) -> Change:
    """Lay fields over those of a JSON file."""

    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def part(section: str, **fields: Any) -> Change:
    """Lay fields over those of a part of config.json."""

    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content[section] |= fields
        path.write_text(json.dumps(content))

    return apply


def sharded(folder: Path, shards: int = 2) -> None:
    """Lay the tensors of a second model's one file out as an index with shards does, in the same folder."""
    content = load_file(folder / SINGLE)
    names = sorted(content)
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    weight_map = {name: files[at % shards] for at, name in enumerate(names)}
    for file in files:
        save_file({n: content[n] for n in names if weight_map[n] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
