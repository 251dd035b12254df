"""What was measured, as a page of tables."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stage2_prune.language.price import CONVENTIONS, LanguageShape
from tests.benchmarks.pruners.inputs import AFTER, BEFORE, Scale, tower_layer_flops
from tests.benchmarks.pruners.inside import Inside
from tests.benchmarks.pruners.operations import written
from tests.benchmarks.pruners.prefill import Prefill
from tests.benchmarks.pruners.selectors import Cell, Selectors
from tests.benchmarks.pruners.timing import Bench
from tests.benchmarks.store.lines import table

GOAL_TOKENS, GOAL = 64, 0.9
"""Visual tokens at which so much of the predicted speed-up must be reached."""
OPERATIONS = (
    "Operations that a selection dispatches (eager, views not counted), which are the same on every machine and with every "
    "width: per step of a method's loop, for all images at once, and besides; before selectors took steps together, and now. "
    "`python -m tests.benchmarks.pruners.operations` prints this table alone."
)
LLAVA_7B = LanguageShape(layers=32, width=4096, heads=32, kv_heads=32, head=128, mlp=11008, itemsize=2)


@dataclass(frozen=True)
class Results:
    """The parts that were run."""

    scale: Scale
    selectors: Selectors | None = None
    inside: tuple[list[Inside], dict[str, str]] | None = None
    prefill: list[Prefill] | None = None

    @property
    def missed(self) -> list[str]:
        """Demands that do not hold: pruning is slower than not pruning, or shorter prompts save less than they should."""
        cells = () if self.selectors is None else self.selectors.cells
        return [
            *(
                f"{cell.method} at {cell.budget} tokens costs {cell.layers:.0f} layers, it saves {saved:.0f}"
                for cell in cells
                if cell.budget in self.scale.budgets and cell.layers > (saved := saved_layers(self.scale, cell.budget))
            ),
            *(
                f"{one.method} at {one.budget} tokens takes {1 / one.measured:.2f} times as long as not pruning"
                for one in (self.inside or ((), {}))[0]
                if one.measured < 1
            ),
            *(
                f"a prompt with {one.visual_tokens} visual tokens reaches {one.reached:.2f} of the predicted speed-up"
                for one in self.prefill or ()
                if (one.visual_tokens, one.questions) == (GOAL_TOKENS, max(self.scale.questions)) and one.reached < GOAL
            ),
        ]


def saved_layers(scale: Scale, keep: int) -> float:
    """Layers of the tower whose FLOPs a 7B model's prefill is saved by keeping so many tokens of an image."""
    count = CONVENTIONS["flops_all"].count
    every, kept = (count(LLAVA_7B, [tokens] * LLAVA_7B.layers, BEFORE + AFTER) for tokens in (scale.patches, keep))
    return (every - kept) / tower_layer_flops(scale)


def page(results: Results, bench: Bench, seconds: float) -> str:
    """All of it in markdown."""
    where = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else f"{os.cpu_count()} CPUs"
    scale = results.scale
    busy = " Others used the machine too: seconds are the processor's, those of choosing inside the model the clock's."
    parts = [
        "# Pruners, measured",
        "Written by `make bench-pruners ARGS='--out docs/pruner-benchmarks.md'`. Everything is in float32 with random weights "
        "and features, the methods are those of `stage2_prune/pruners` with their default parameters. Only ratios count: runs "
        "take turns in one process, in a random order.",
        f"{time.strftime('%Y-%m-%d')}; {where}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}. Medians of {scale.rounds} rounds; {seconds / 60:.0f} minutes in all."
        f"{busy * bench.busy}",
    ]
    if results.selectors:
        parts += _selectors(scale, results.selectors)
    if results.inside:
        parts += _inside(scale, *results.inside)
    if results.prefill:
        parts += _prefill(scale, results.prefill)
    return "\n\n".join(parts) + "\n"


def _selectors(scale: Scale, found: Selectors) -> list[str]:
    columns = [(images, keep) for images in scale.batches for keep in scale.budgets]
    head = ["method", *(f"{keep} tokens, {images} at once" for images, keep in columns)]
    methods = {cell.method for cell in found.cells}
    cost = {name: max(cell.layers for cell in found.cells if cell.method == name) for name in methods}
    rows = [
        [_name(name, found), *(_cell(found.cells, name, images, keep) for images, keep in columns)]
        for name in sorted(methods, key=lambda name: -cost[name])
    ]
    rows += [[name, reason, *[""] * (len(columns) - 1)] for name, reason in found.left_out.items()]
    layer = " and ".join(f"{took:.1f} ms with {images} at once" for images, took in found.yardstick.items())
    saved = " and ".join(f"{saved_layers(scale, keep):.0f} at {keep} tokens" for keep in scale.budgets)
    return [
        "## Before the language model",
        f"Milliseconds per image from cached arrays ({scale.patches} patches) to the patches that go on; of methods that merge, "
        "to the projected tokens that they make. In brackets: the same in forward passes of **one layer of the vision tower** "
        f"({scale.tower_layers} of width {scale.widths[0]}) over the same images, {layer}. By FLOPs the prefill of a 7B model is "
        f"saved {saved} such layers: no method may cost as much. A method with a budget of its own shows the same number twice.",
        table(head, rows),
        *(["`*` Run once and on one image only, as it is slow."] if found.once else []),
        OPERATIONS,
        written(found.operations),
    ]


def _name(name: str, found: Selectors) -> str:
    return f"{name} *" if name in found.once else name


def _cell(cells: Sequence[Cell], name: str, images: int, keep: int) -> str:
    here = [cell for cell in cells if (cell.method, cell.batch) == (name, images)]
    cell = next((cell for cell in here if cell.budget == keep), here[0] if here else None)
    return "" if cell is None else f"{cell.milliseconds:.2f} ({cell.layers:.2f})"


def _inside(scale: Scale, found: list[Inside], left_out: dict[str, str]) -> list[str]:
    head = ["method", "mean tokens", "choosing, ms", "in layers", "prefill speed-up", "predicted"]
    rows: list[list[str]] = []
    for one in found:
        who = [one.method, f"{one.budget}" if one.budget else "its own"]
        chose = [f"{one.milliseconds:.1f}", f"{one.layers:.2f}"]
        rows.append([*who, *chose, f"{one.measured:.2f} x", f"{one.predicted:.2f} x"])
    layers, width, *_ = scale.language
    return [
        "## Inside the language model",
        f"One question of {BEFORE + AFTER} text tokens and {scale.patches} patches, on a Llama of {layers} layers and width "
        f"{width}: milliseconds that choosing takes in all its stages, the same in layers of the unpruned model, and how many "
        "times as fast as unpruned the prefill is with the choosing in it; FLOPs, which predict the last column, know none. "
        "What a combination does before the language model stands in the table above. Demanded: never slower than unpruned.",
        table(head, rows),
        *([f"Infeasible: {'; '.join(f'{name} ({reason})' for name, reason in left_out.items())}."] if left_out else []),
    ]


def _prefill(scale: Scale, found: list[Prefill]) -> list[str]:
    head = ["questions at once", "visual tokens", "ms per question"]
    head += ["speed-up", "predicted", "reached", "matrices alone"]
    rows: list[list[str]] = []
    for one in found:
        prompt = [f"{one.questions}", f"{one.visual_tokens}", f"{one.milliseconds:.0f}"]
        speed = [f"{one.measured:.2f} x", f"{one.predicted:.2f} x"]
        rows.append([*prompt, *speed, f"{one.reached:.2f}", f"{one.products:.2f}"])
    return [
        "## What shorter prompts save",
        "The same language model up to the answer's first token, on prompts that hold only the kept patches, against prompts "
        f"with all {scale.patches}; predicted by FLOPs, the {BEFORE + AFTER} text tokens and the head at the last one included. "
        "The last column is what the layers' matrix products reach of their own prediction on as many rows: fewer rows make "
        "less of a matrix that has to be read whole, and no pruner can mend that. "
        f"Demanded at {GOAL_TOKENS} tokens: {GOAL} of the prediction with {max(scale.questions)} questions at once.",
        table(head, rows),
    ]
