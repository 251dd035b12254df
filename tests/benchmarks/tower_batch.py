"""How many images a call of the tower should take: images per second of tower and projector by images per call."""

import statistics
import time
from pathlib import Path

import torch

from stage1_extract.encoding.family import checkpoint_config
from stage1_extract.find_family import find_family
from stage1_extract.work.self_test import noise
from tests.benchmarks.stage1 import experiment_on, vision_half

SIZES = (1, 2, 4, 8)
ROUNDS = 5


def images_per_second(folder: Path) -> dict[str, float]:
    """On CLIP ViT-L/14-336 and the projector 1024 -> 4096 -> 4096, random weights; rounds of all sizes take turns."""
    wanted = experiment_on(folder, vision_half(folder / "checkpoint"))
    config = checkpoint_config(wanted.model)
    encoder = find_family(config).open(wanted, config, torch.device("cpu"))
    pictures = noise(encoder, max(SIZES))
    measured: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size in SIZES:
            began = time.perf_counter()
            for start in range(0, len(pictures), size):
                encoder.encode(pictures[start : start + size])
            measured[size].append(len(pictures) / (time.perf_counter() - began))
    return {f"{size} per call, images/s": statistics.median(rates) for size, rates in measured.items()}
