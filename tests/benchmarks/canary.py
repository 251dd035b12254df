"""What the canary costs: the layer loop's comparison with the stock model, before the first cell that prunes inside it."""

import time
from pathlib import Path
from statistics import median

import torch

from stage2_prune.evaluation.canary import STEPS, compare_with_stock
from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from tests.benchmarks.pruners.inputs import QUICK, REAL, Scale, language
from tests.benchmarks.pruners.prefill import with_patches

ROUNDS = 3


def milliseconds(folder: Path) -> dict[str, float]:
    """On a model of 8 narrow layers with 24 patches, and on 12 layers of a quarter of LLaMA-7B's widths with 576."""
    found: dict[str, float] = {}
    for name, scale in (("8 layers of width 32, 24 patches", QUICK), ("12 layers of width 1024, 576 patches", REAL)):
        canary, stock = _both(scale)
        found[f"processor ms, {name}"] = 1000 * canary
        found[f"in stock answers of {STEPS} tokens, {name}"] = canary / stock
    return found


def _both(scale: Scale) -> tuple[float, float]:
    """Median processor seconds of the canary and of one stock answer, which take turns."""
    model = language(scale, torch.device("cpu"))
    prompt = with_patches(model, scale, 1, scale.patches)
    turns = [(_canary(model, prompt), _stock(model, prompt)) for _ in range(1 + ROUNDS)][1:]
    canaries, stocks = zip(*turns, strict=True)
    return median(canaries), median(stocks)


def _canary(model: Language, prompt: ModelInputs) -> float:
    begun = time.process_time()
    compare_with_stock(model, prompt)
    return time.process_time() - begun


def _stock(model: Language, prompt: ModelInputs) -> float:
    begun = time.process_time()
    generate(model, prompt, STEPS)
    return time.process_time() - begun
