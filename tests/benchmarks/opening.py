"""How long opening a run takes beyond the loading of its weights, the first time and once their digest is remembered."""

import json
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from configs.load import load
from stage1_extract.extract import extract
from stage2_prune.families.llava import KEY_MAPPING
from stage2_prune.session.session import open_session
from store.checkpoint import digests
from store.checkpoint.opening import quiet_loading
from tests.faults.runs import config_file
from tests.helpers.checkpoints import edit_config, tiny_llava
from tests.helpers.data import tiny_questions

WIDTH, ROUNDS = 2048, 3
FIRST_LAYER = "language_model.model.layers.0."


def seconds(folder: Path, gigabytes: float) -> dict[str, float]:
    """On a checkpoint whose language half is a stack of equal layers in float16; its files are in the page cache."""
    tiny_questions(folder / "data", images=3)
    checkpoint = _tall(tiny_llava(folder / "model", text_width=WIDTH, dtype=torch.float16, layout="hub4"), gigabytes)
    experiment = load(config_file(folder, checkpoint, model={"checkpoint": str(checkpoint), "dtype": "float16"}), {})
    extract(experiment, overwrite=False)
    _load(checkpoint)
    loading = min(_clocked(lambda: _load(checkpoint)) for _ in range(ROUNDS))

    def opened() -> object:
        return open_session(experiment, frozenset()).conditions

    with (
        patch.dict(os.environ, ENCODE_ONCE_CACHE=str(folder / "cache")),
        patch.object(digests, "SETTLED_SECONDS", 0.0),  # the checkpoint is as old as this benchmark
    ):
        first, *later = [_clocked(opened) for _ in range(1 + ROUNDS)]
    return {
        "GB of weights": (checkpoint / "model.safetensors").stat().st_size / 1e9,
        "loading the language half with stock code, each byte read, s": loading,
        "first opening beyond loading, s": first - loading,
        "second opening beyond loading, s": min(later) - loading,
    }


def _tall(checkpoint: Path, gigabytes: float) -> Path:
    """Repeat the first layer of the language half until the weights have that size."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    layer = {n.removeprefix(FIRST_LAYER): tensor for n, tensor in weights.items() if n.startswith(FIRST_LAYER)}
    depth = max(2, round(gigabytes * 1e9 / sum(tensor.nbytes for tensor in layer.values())))
    for number in range(depth):
        weights |= {f"language_model.model.layers.{number}.{name}": tensor.clone() for name, tensor in layer.items()}
    save_file(weights, path, {"format": "pt"})
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    edit_config(checkpoint, text_config=text | {"num_hidden_layers": depth})
    return checkpoint


@torch.no_grad()
def _load(checkpoint: Path) -> None:
    """Load the language half, and read every byte of it once, because stock code only maps the file into memory."""
    config = AutoConfig.from_pretrained(checkpoint).text_config
    stock: Any = AutoModelForCausalLM
    with quiet_loading():
        model = stock.from_pretrained(checkpoint, config=config, key_mapping=KEY_MAPPING, dtype=torch.float16)
    for parameter in model.parameters():
        parameter.max()


def _clocked(work: Any) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
