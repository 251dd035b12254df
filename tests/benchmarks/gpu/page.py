"""The page of the figures: those before, those measured since, and the card of each."""

import datetime
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers

from tests.benchmarks.gpu.before import BEFORE, CARD, before

TITLES = {
    "made": "What is measured on",
    "stage1": "Stage 1: the tower",
    "ring": "Stage 1: from the device to host memory",
    "extract": "Stage 1: a whole extraction",
    "parity": "Parity",
    "opening": "Opening a run",
    "prefill": "Prefill of the language model",
    "training": "A training step",
    "evaluation": "Evaluation",
    "graphs": "Prefill as a CUDA graph",
    "selectors": "Selectors",
    "gather": "From the page cache to the device",
}
"""The parts, in the order of a run, with the titles of their tables."""
_INTRODUCTION = """# One GPU, measured

Written by `make bench-gpu ARGS='--out docs/gpu-benchmarks.md'`, or by `python3 -m tests.benchmarks.gpu` with any interpreter that has
the runtime dependencies: no virtual environment, no pytest, no network. Everything runs at the shapes of LLaVA-1.5-7B in float16: CLIP
ViT-L/14-336, the projector 1024 -> 4096 -> 4096 and a Llama of 32 layers and width 4096, all with random weights, which the run makes
itself, as it makes the photographs (JPEG, 640 x 480). A prompt has 60 text tokens beside its visual tokens.
"""
_PENDING = "The figures after are still to be measured: no GPU was at hand since the code was changed.\n"
_BEFORE = f"""The column *before* was measured before the pipeline was built for GPUs, on one {CARD} with 16 cores, torch 2.11 with CUDA 13 and
transformers 5.23. That machine's processor launches kernels slowly, so what is bound by launches there is less so elsewhere, but never
free. A cell is empty where nothing was measured.
"""


@dataclass(frozen=True)
class Shown:
    """A row as it is printed."""

    part: str
    what: str
    value: str
    """The figure; empty for a sentence about the part."""
    unit: str
    card: str
    """Where it was measured."""


def page(rows: Sequence[Shown]) -> str:
    """Return the page in Markdown."""
    cards = dict.fromkeys(row.card for row in rows)
    where = f"The column *after* was measured on {' and '.join(cards)}; {_versions()}.\n" if cards else _PENDING
    tables = [_part(part, [row for row in rows if row.part == part], ", ".join(cards)) for part in TITLES]
    return "\n".join([_INTRODUCTION, _BEFORE, where, *(table for table in tables if table)])


def _versions() -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}; Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


def _part(part: str, rows: Sequence[Shown], cards: str) -> str:
    """Return a part's table; the figures before that have no figure after stand in it too."""
    measured = {row.what: row for row in rows if row.value}
    known = [what for of, what in BEFORE if of == part]
    names = [*measured, *(what for what in known if what not in measured)]
    if not names and not rows:
        return ""
    lines = [f"## {TITLES[part]}", ""]
    if names:
        lines += [f"| | before ({CARD}) | after{f' ({cards})' if cards else ''} | unit |", "|---|---|---|---|"]
        for what in names:
            row = measured.get(what)
            unit = BEFORE[part, what].unit if row is None else row.unit
            lines.append(f"| {what} | {before(part, what)} | {'' if row is None else row.value} | {unit} |")
        lines.append("")
    for sentence in dict.fromkeys(row.what for row in rows if not row.value):
        lines += [f"{sentence[0].upper()}{sentence[1:]}.", ""]
    return "\n".join(lines)
