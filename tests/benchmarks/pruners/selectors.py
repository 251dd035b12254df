"""Methods before the language model: milliseconds per image, beside one layer of the vision tower."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.merging import make_merged
from tests.benchmarks.pruners.inputs import Scale, device_tokens, tower_layer
from tests.benchmarks.pruners.operations import Count, counts
from tests.benchmarks.pruners.timing import Bench
from tests.stage2_prune.tokens import ready

Run = Callable[[], object]
YARDSTICK = "one layer of the tower"


@dataclass(frozen=True)
class Cell:
    """One method at one budget and one batch."""

    method: str
    budget: int
    """Visual tokens per image that were asked for; of a method that decides by itself, all of them."""
    batch: int
    """Images at once."""
    milliseconds: float
    """Per image."""
    layers: float
    """The same in layers of the tower, at the same batch."""


@dataclass(frozen=True)
class Selectors:
    """All that was found."""

    cells: tuple[Cell, ...]
    yardstick: dict[int, float]
    """Milliseconds per image of one layer of the tower, by images at once."""
    once: frozenset[str]
    """Methods that are too slow to be repeated, or to be run on more than one image."""
    left_out: dict[str, str]
    """Methods that were not run, and why."""
    operations: dict[str, Count]
    """What each method dispatches, which no device changes."""


@torch.no_grad()
def selectors(scale: Scale, bench: Bench) -> Selectors:
    """All methods of the folder at all budgets and batches."""
    found = {name: kind for name, kind in plugin.find_all(pruners, Pruner).items() if kind.place == "before_llm"}
    cells: list[Cell] = []
    yardstick: dict[int, float] = {}
    once: set[str] = set()
    left_out: dict[str, str] = {}
    for images in scale.batches:
        tokens = device_tokens(scale, images, bench.device)
        for name, kind in found.items():
            if lacking := sorted(kind.needs - tokens.arrays.keys()):
                left_out[name] = f"needs {' and '.join(lacking)}, which this benchmark does not make"
        chosen = {
            name: ready_on(kind, scale, bench.device) for name, kind in found.items() if name not in {*once, *left_out}
        }
        layer, entering = tower_layer(scale, images, bench.device)
        runs: dict[str, Run] = {YARDSTICK: lambda layer=layer, entering=entering: layer(entering, None)}
        whose: dict[str, tuple[str, int]] = {}
        layer_seconds = min(bench.once(runs[YARDSTICK]) for _ in range(4))
        for name, pruner in tqdm(chosen.items(), unit="method", leave=False, disable=None):
            these = {keep: _selecting(pruner, tokens, keep) for keep in _budgets(pruner, scale)}
            for run in these.values():  # an accelerator loads kernels at their first call, and memory is found then
                bench.once(run)
            took = {keep: bench.once(run) for keep, run in these.items()}
            if max(took.values()) > scale.slow * layer_seconds:
                once.add(name)
                cells += [Cell(name, k, images, 1000 * s / images, s / layer_seconds) for k, s in took.items()]
                continue
            for keep, run in these.items():
                runs[f"{name} {keep}"], whose[f"{name} {keep}"] = run, (name, keep)
        median = bench.medians(runs, scale.rounds)
        yardstick[images] = 1000 * median[YARDSTICK] / images
        for run, (name, keep) in whose.items():
            cells.append(Cell(name, keep, images, 1000 * median[run] / images, median[run] / median[YARDSTICK]))
    return Selectors(tuple(cells), yardstick, frozenset(once), left_out, counts())


def ready_on(kind: type[Pruner], scale: Scale, device: torch.device) -> Pruner:
    """A method with its defaults; a trained one has a fresh module."""
    pruner = ready(kind(), scale.grid, scale.widths)
    if isinstance(pruner, TrainedPruner):
        pruner.module.to(device)
    return pruner


def _budgets(pruner: Pruner, scale: Scale) -> tuple[int, ...]:
    if pruner.budget == "fixed":
        return (pruner.fixed_keep(scale.patches),)
    return (scale.patches,) if pruner.adaptive else scale.budgets


def _selecting(pruner: Pruner, tokens: VisualTokens, keep: int) -> Run:
    """From cached arrays to what goes on; of a merging method that is the tokens that it makes, projected."""
    seen = tokens.only(pruner.needs, pruner.reads)
    batch = FeatureBatch((), torch.arange(len(tokens.image_ids)), seen, tokens.arrays["projected"])
    project = tokens.projector
    assert project is not None
    return lambda: make_merged(pruner.prune(seen, keep), batch, project)
