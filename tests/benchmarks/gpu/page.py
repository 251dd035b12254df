"""The page of the figures: those before, those measured since, and the card of each."""

import datetime
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers

from tests.benchmarks.gpu.before import BEFORE, CARD, before

TITLES = {
    "made": "What is measured on",
    "stage1": "Stage 1: the tower",
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

Written by `make bench-gpu ARGS='--out docs/gpu-benchmarks.md'`, or by `python3 -m tests.benchmarks.gpu` with any interpreter that
has the runtime dependencies: no virtual environment, no pytest, no network. Everything runs at the shapes of LLaVA-1.5-7B in
float16: CLIP ViT-L/14-336, the projector 1024 -> 4096 -> 4096 and a Llama of 32 layers and width 4096, all with random weights,
which the run makes itself, as it makes the photographs (JPEG, 640 x 480). A prompt has 60 text tokens beside its visual tokens.
"""
_PENDING = """The figures *after* are still to be measured: no GPU was at hand since the code was changed. A run writes this
page with both.
"""
_BEFORE = f"""The figures *before* were measured before the pipeline was built for GPUs, on one {CARD}, with 16 cores,
torch 2.11 with CUDA 13 and transformers 5.23. That machine's processor launches kernels slowly, so what is bound by launches
there is less so elsewhere, but never free. A cell is empty where nothing was measured.
"""
_COLUMN = re.compile(r"(.+), (\d+ (?:at once|a call))")
"""Rows that differ by how much is done at once stand in one table, side by side."""


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
    after = f"The figures *after* were measured on {' and '.join(cards)}; {_versions()}.\n" if cards else _PENDING
    parts = [_part(part, [row for row in rows if row.part == part]) for part in TITLES]
    return "\n".join([_INTRODUCTION, _BEFORE, after, *(part for part in parts if part)])


def _versions() -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{today}; Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"


def _part(part: str, rows: Sequence[Shown]) -> str:
    """Return the tables of a part; figures before that have none after stand in them too."""
    after = {row.what: row.value for row in rows if row.value}
    units = {what: figure.unit for (of, what), figure in BEFORE.items() if of == part}
    units |= {row.what: row.unit for row in rows if row.value}
    figures = {what: (before(part, what), after.get(what, "")) for what in units}
    sentences = dict.fromkeys(f"{row.what[0].upper()}{row.what[1:]}." for row in rows if not row.value)
    tables = [_side_by_side(figures, units), _plain(figures, units)]
    blocks = [*(table for table in tables if table), *sentences]
    return "\n\n".join([f"## {TITLES[part]}", *blocks]) + "\n" if blocks else ""


Figures = Mapping[str, tuple[str, str]]
"""The figures before and after, by row."""


def _plain(figures: Figures, units: Mapping[str, str]) -> str:
    """Return the table of the rows that are no case of how much is done at once."""
    rows = {what: pair for what, pair in figures.items() if not _COLUMN.fullmatch(what)}
    lines = [f"| {what} | {' | '.join(pair)} | {units[what]} |" for what, pair in rows.items()]
    return "\n".join(["| | before | after | unit |", "|---|---|---|---|", *lines]) if lines else ""


def _side_by_side(figures: Figures, units: Mapping[str, str]) -> str:
    """Return the table whose columns say how much is done at once."""
    found = {what: match for what in figures if (match := _COLUMN.fullmatch(what))}
    columns = sorted({match[2] for match in found.values()}, key=lambda column: int(column.split()[0]))
    unit = ", ".join(dict.fromkeys(units[what] for what in found if units[what]))
    head = [f"{column}: {side}" for column in columns for side in ("before", "after")]
    lines = [f"| {unit} | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name in dict.fromkeys(match[1] for match in found.values()):
        pairs = [figures.get(f"{name}, {column}", ("", "")) for column in columns]
        lines.append(f"| {name} | {' | '.join(figure for pair in pairs for figure in pair)} |")
    return "\n".join(lines) if found else ""
