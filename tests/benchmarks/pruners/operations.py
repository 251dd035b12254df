"""Operations that a selection dispatches: eager, without views; a figure that is the same on every machine.

python -m tests.benchmarks.pruners.operations        the table, as it stands in docs/pruner-benchmarks.md
"""

from dataclasses import dataclass, replace

import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.pruners.vis_pruner import VisPruner
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import VisualTokens
from tests.benchmarks.pruners.inputs import REAL, device_tokens
from tests.benchmarks.store.lines import table
from tests.helpers.operations import operations
from tests.stage2_prune.tokens import ready

SCALE = replace(REAL, widths=(64, 4, 96), clip=32, batches=(1, 8))
"""As many patches as LLaVA-1.5 has; widths change no count."""


@dataclass(frozen=True)
class Count:
    """What one method dispatches."""

    step: float
    """Per step of its loop, for all images at once: the slope between two budgets, 0 without such a loop."""
    one: float
    """Besides the steps, for one image."""
    eight: float
    """The same for eight images at once."""


BEFORE = {
    "average_pooling": Count(0, 158, 158), "cd_pruner": Count(16, 32, 123), "cls_attention": Count(0, 6, 6),
    "div_prune": Count(6, 11, 39), "feature_norm": Count(0, 6, 6), "first_last": Count(0, 1, 1),
    "g_prune": Count(0, 32, 207), "hi_prune": Count(0, 17, 17), "hired": Count(0, 6, 6),
    "holov": Count(0, 495, 3939), "keep_all": Count(0, 1, 1), "keep_none": Count(0, 1, 1),
    "learned_scorer": Count(0, 18, 102), "mm_tok": Count(15, 37, 303), "nuwa": Count(0, 90, 517),
    "pru_merge": Count(0, 42, 329), "prune_sid": Count(3.3, 72, 548), "random": Count(0, 1, 1),
    "random_inside": Count(0, 6, 27), "received_attention": Count(0, 5, 5), "scope": Count(16, 17, 170),
    "trim": Count(0, 25, 193), "uniform_grid": Count(0, 0, 0), "vis_pruner": Count(9, 15, 43),
    "vision_trim": Count(0, 99, 743), "vision_zip": Count(0, 45, 353), "vscan": Count(0, 57, 358),
    "zoo_prune": Count(6, 858, 6752),
}  # fmt: skip
"""As counted before selectors took their steps in a handful of operations; a step of `vis_pruner` was one of one image."""


@torch.no_grad()
def count(kind: type[Pruner]) -> Count:
    """Count a method's operations at two budgets."""
    pruner = ready(kind(), SCALE.grid, SCALE.widths)
    low, high = SCALE.budgets
    found: list[tuple[float, float]] = []
    for images in SCALE.batches:
        tokens = device_tokens(SCALE, images, torch.device("cpu")).only(pruner.needs, pruner.reads)
        few, many = (_total(pruner, tokens, keep) for keep in (low, high))
        slope = (many - few) / (_steps(pruner, high) - _steps(pruner, low))
        found.append((slope, few - slope * _steps(pruner, low)))
    (_, one), (step, eight) = found
    return Count(step, one, eight)


def counts() -> dict[str, Count]:
    """Count the operations of all methods before the language model."""
    kinds = plugin.find_all(pruners, Pruner)
    return {name: count(kind) for name, kind in kinds.items() if kind.place == "before_llm"}


def written(found: dict[str, Count]) -> str:
    """Set a table of all counts beside those before."""
    head = ["method", "per step, before", "now", "besides, 1 image, before", "now", "8 at once, before", "now"]
    rows: list[list[str]] = []
    for name, now in sorted(found.items(), key=lambda one: (-one[1].step, -one[1].eight)):
        before = BEFORE.get(name)
        pairs = [(before and getattr(before, field), getattr(now, field)) for field in ("step", "one", "eight")]
        rows.append([name, *(_cell(value) for pair in pairs for value in pair)])
    return table(head, rows)


def _total(pruner: Pruner, tokens: VisualTokens, keep: int) -> int:
    return operations(lambda: pruner.prune(tokens, pruner.asked_tokens(tokens.patches, keep))).total()


def _steps(pruner: Pruner, keep: int) -> int:
    """Return the steps of a method's loop: one for each token, but where rounds drop tokens."""
    if isinstance(pruner, VisPruner):
        return -((keep - SCALE.patches) // pruner.per_round)
    return keep


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}".removesuffix(".0")


if __name__ == "__main__":
    print(written(counts()))
