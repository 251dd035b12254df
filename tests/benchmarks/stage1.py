"""Stage 1 against the least that it could be: tower and projector on tensors that are ready, and its slowest leg alone."""

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, LlamaConfig, LlavaConfig

from configs.experiment import Experiment
from stage1_extract.encoding.family import Encoder, Pixels, checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.sources import find_sources
from stage1_extract.work.decoding import decode
from stage1_extract.work.open_encoder import Arrays, OpenEncoder
from stage1_extract.work.planning import plan_for
from stage1_extract.work.worker import Worker
from store.layout.tensors import to_storage
from store.writing.writer import StoreWriter
from tests.helpers.checkpoints import WORDS, save_processor

DEMO = Path(__file__).parents[2] / "stage1_extract" / "demo" / "checkpoint"
TOWER_BATCH = 4


def tiny(folder: Path) -> dict[str, float]:
    """On the demo's tower."""
    return _compare(folder, DEMO, images=64, rounds=5)


def real_geometry(folder: Path) -> dict[str, float]:
    """On CLIP ViT-L/14-336 and the projector 1024 -> 4096 -> 4096, random weights."""
    return _compare(folder, vision_half(folder / "checkpoint"), images=8, rounds=3)


def _compare(folder: Path, checkpoint: Path, images: int, rounds: int) -> dict[str, float]:
    _photos(folder / "images", images)
    wanted = experiment_on(folder, checkpoint)
    config = checkpoint_config(wanted.model)
    encoder = find_family(config).open(wanted, config, torch.device("cpu"))
    batches = _ready(encoder, folder / "images")
    features = encoder.encode([{"pixel_values": one[None]} for one in batches[0]])
    opened, idle = (
        OpenEncoder(wanted, None, one, torch.device("cpu"), TOWER_BATCH)
        for one in (encoder, WithoutTower(encoder, features))
    )
    stored = {name: to_storage(values) for name, values in features.items()}
    legs: dict[str, list[float]] = {"decoding on all cores": [], "tower + projector": [], "durable writing": []}
    stage, outside = [], []
    _bare(encoder, batches[:1])
    for number in range(rounds):
        legs["decoding on all cores"].append(images / _decode(wanted, encoder))
        legs["tower + projector"].append(images / _bare(encoder, batches))
        legs["durable writing"].append(images / _write(_in(wanted, folder / f"written-{number}"), encoder, stored))
        stage.append(images / _extract(_in(wanted, folder / f"run-{number}"), opened)[0])
        outside.append(1000 * _extract(_in(wanted, folder / f"idle-{number}"), idle)[1] / images)
    slowest = min(legs, key=lambda leg: statistics.median(legs[leg]))
    return {
        "stage 1, images/s": statistics.median(stage),
        **{f"{leg} alone, images/s": statistics.median(rates) for leg, rates in legs.items()},
        f"share of the slowest leg, {slowest}": _ratio(stage, legs[slowest]),
        "share of the bare tower + projector loop": _ratio(stage, legs["tower + projector"]),
        "CPU ms per image outside tower and projector": statistics.median(outside),
    }


def _ratio(ours: list[float], others: list[float]) -> float:
    """The median over interleaved rounds."""
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


class WithoutTower(Encoder):
    """An encoder whose features are there already: what stage 1 costs beside the model."""

    def __init__(self, encoder: Encoder, features: dict[str, torch.Tensor]) -> None:
        self.description, self.projector, self.weights = encoder.description, encoder.projector, encoder.weights
        self.processor = encoder.processor
        self._encoder, self._features = encoder, features

    def preprocess(self, image: Image.Image) -> Pixels:
        """The real one's."""
        return self._encoder.preprocess(image)

    def encode(self, batch: Sequence[Pixels]) -> dict[str, torch.Tensor]:
        """What another image gave, for each image."""
        return {name: array[:1].expand(len(batch), *array.shape[1:]) for name, array in self._features.items()}


def _in(experiment: Experiment, run_dir: Path) -> Experiment:
    return experiment.model_copy(update={"run_dir": run_dir})


def _extract(experiment: Experiment, opened: OpenEncoder) -> tuple[float, float]:
    """Wall and CPU seconds from the first image's decoding to the last shard's commit, with the model open already."""
    sources, encoder = find_sources(experiment), opened.encoder
    plan = plan_for(experiment, sources, encoder.description, {})
    with StoreWriter.open(experiment.store_path, plan, sources.ids(), encoder.projector) as writer:
        wall, cpu = time.perf_counter(), time.process_time()
        Worker(experiment, writer, sources, opened, "benchmark").extract(writer.missing_shards(), allowed=0)
        return time.perf_counter() - wall, time.process_time() - cpu


def _decode(experiment: Experiment, encoder: Encoder) -> float:
    """Seconds of reading, decoding and preprocessing every image, with a thread per core."""
    sources = find_sources(experiment)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda row: decode(row, sources, encoder, experiment.extract.max_pixels), sources.rows))
        return time.perf_counter() - begun


def _write(experiment: Experiment, encoder: Encoder, stored: Arrays) -> float:
    """Seconds of committing every shard of a store."""
    sources = find_sources(experiment)
    plan = plan_for(experiment, sources, encoder.description, {})
    with StoreWriter.open(experiment.store_path, plan, sources.ids(), encoder.projector) as writer:
        shards = {
            shard: {name: np.resize(rows, (len(plan.rows(shard)), *rows.shape[1:])) for name, rows in stored.items()}
            for shard in writer.missing_shards()
        }
        begun = time.perf_counter()
        for shard, arrays in shards.items():
            writer.commit_shard(shard, arrays, {}, {})
        return time.perf_counter() - begun


@torch.no_grad()
def _bare(encoder: Any, batches: list[torch.Tensor]) -> float:
    half = encoder.half
    begun = time.perf_counter()
    for pixels in batches:
        states = half.tower(pixels, output_hidden_states=True).hidden_states
        half.projector(half.selection.of(states))
    return time.perf_counter() - begun


def _ready(encoder: Any, folder: Path) -> list[torch.Tensor]:
    pixels = [encoder.preprocess(Image.open(path).convert("RGB"))["pixel_values"] for path in sorted(folder.iterdir())]
    return list(torch.cat(pixels).split(TOWER_BATCH))


def _photos(folder: Path, count: int) -> None:
    """JPEGs of 640 x 480 whose content is as hard to decode as a photograph's."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        coarse.save(folder / f"{number:04d}.jpg", quality=90)


def experiment_on(folder: Path, checkpoint: Path) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "bench",
            "run_dir": folder / "run",
            "model": {"checkpoint": str(checkpoint), "device": "cpu"},
            "data": {"images": folder / "images"},
            "extract": {"tower_batch": TOWER_BATCH},
        }
    )


def vision_half(folder: Path) -> Path:
    """A checkpoint without a language model's weights: stage 1 does not open them."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(vocab_size=len(WORDS), hidden_size=4096, num_hidden_layers=2)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=WORDS.index("<image>"))
    config.save_pretrained(folder)
    weights = {f"vision_tower.{name}": tensor for name, tensor in AutoModel.from_config(vision).state_dict().items()}
    for name, (rows, columns) in {"linear_1": (4096, 1024), "linear_2": (4096, 4096)}.items():
        weights[f"multi_modal_projector.{name}.weight"] = torch.randn(rows, columns) * 0.02
        weights[f"multi_modal_projector.{name}.bias"] = torch.zeros(rows)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    save_processor(folder, image_size=336, patch_size=14)
    return folder
