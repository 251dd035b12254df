"""Methods inside the language model: milliseconds per question for choosing, and what the whole prefill gains."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.errors import Infeasible
from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import PruningLanguage, pruning_inside
from stage2_prune.language.price import shape_of
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.schedule import Schedule
from tests.benchmarks.pruners.inputs import Scale, device_tokens, language, prompts
from tests.benchmarks.pruners.prefill import flops, with_patches
from tests.benchmarks.pruners.selectors import ready_on
from tests.benchmarks.pruners.timing import Bench

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Inside:
    """One method at one budget, on prompts of one question."""

    method: str
    budget: int
    """Visual tokens, as a mean over layers."""
    milliseconds: float
    """Per question, spent on choosing: what the layer loop's stopwatch says."""
    layers: float
    """The same in layers of the unpruned language model, each an equal part of its prefill."""
    measured: float
    """How many times as fast as the unpruned prefill, choosing included."""
    predicted: float
    """The same by FLOPs, which know no choosing."""


@torch.no_grad()
def inside(scale: Scale, bench: Bench) -> tuple[list[Inside], dict[str, str]]:
    """All methods of the folder at all budgets, and why some cannot have them."""
    model = language(scale, bench.device)
    scale = replace(scale, widths=(*scale.widths[:2], model.width))  # projected features are as wide as the model
    left_out: dict[str, str] = {}
    runs: dict[str, Callable[[], object]] = {}
    whose: dict[str, tuple[str, int, Schedule]] = {}
    chose: dict[str, list[float]] = {}
    whole = with_patches(model, scale, 1, scale.patches)
    runs[UNPRUNED] = lambda: generate(model, whole, 1)
    for name, pruner in _methods(scale, bench.device).items():
        for keep in (0,) if pruner.budget == "fixed" else scale.budgets:
            try:
                schedule = pruner.schedule(scale.patches, scale.language[0], keep)
            except Infeasible as reason:
                left_out[f"{name} at {keep}"] = str(reason).split(":")[0]
                continue
            run = f"{name} {keep}"
            chose[run] = []
            whose[run] = name, keep, schedule
            pruning = pruning_inside(model, pruner, schedule, pruner.positions)
            batch = _entering(model, scale, pruner, schedule)
            runs[run] = lambda pruning=pruning, batch=batch, chose=chose[run]: _timed(pruning, batch, chose)
    took = bench.medians(runs, scale.rounds)
    shape = shape_of(model)
    every = flops(shape, scale, [scale.patches] * shape.layers)
    layer = took[UNPRUNED] / shape.layers
    found: list[Inside] = []
    for run, (name, keep, schedule) in whose.items():
        seconds = statistics.median(chose[run][1:])
        predicted = every / flops(shape, scale, schedule.tokens_per_layer)
        found.append(Inside(name, keep, 1000 * seconds, seconds / layer, took[UNPRUNED] / took[run], predicted))
    return found, left_out


def _methods(scale: Scale, device: torch.device) -> dict[str, InLLMPruner]:
    kinds = {name: kind for name, kind in plugin.find_all(pruners, Pruner).items() if kind.place == "in_llm"}
    made = {name: ready_on(kind, scale, device) for name, kind in kinds.items()}
    return {name: pruner for name, pruner in made.items() if isinstance(pruner, InLLMPruner)}


def _timed(pruning: PruningLanguage, batch: ModelInputs, chose: list[float]) -> None:
    before = pruning.stopwatch.seconds
    generate(pruning, batch, 1)
    chose.append(pruning.stopwatch.seconds - before)


def _entering(model: Language, scale: Scale, pruner: InLLMPruner, schedule: Schedule) -> ModelInputs:
    """A prompt with what the method lets in: all patches, unless it selects before the language model too."""
    if schedule.entering == scale.patches:
        return with_patches(model, scale, 1, scale.patches)
    tokens = device_tokens(scale, 1, model.device)
    index = pruner.prune(tokens.only(pruner.needs, pruner.reads), schedule.entering).index
    visual = torch.randn(1, schedule.entering, model.width, generator=torch.Generator().manual_seed(0)).to(model.device)
    return assemble(model, prompts(scale, 1), visual, index, scale.patches, pruner.positions)
