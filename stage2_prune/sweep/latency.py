"""Measure what a cell costs on the clock: selecting, and reading one question's prompt, beside the unpruned model.

Beside the measured times stands what explains them: see `Explained`.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

import torch

from configs import plugin
from stage2_prune import pruners
from stage2_prune.errors import DamagedRun, Infeasible, PrunerMisused
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.shortcuts import UNPRUNED
from stage2_prune.language.clock import seconds_after_work
from stage2_prune.language.layer_loop import pruning_inside
from stage2_prune.pruning.in_llm import InLLMPruner
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.session.ask import Prepared, prepare, prompts
from stage2_prune.session.features import FeatureBatch
from stage2_prune.session.identity import digest
from stage2_prune.session.prune_batch import prune_batch
from stage2_prune.session.sealed import read_object, write_object
from stage2_prune.session.session import Session
from stage2_prune.sweep.explained import Explained, Explainer, explained
from store.questions.question import Question

_SAVED_EVERY = 50
_NEIGHBOURS = 5
"""How many cells are timed behind one run of the unpruned model, which they are compared with."""


@dataclass(frozen=True)
class Measured:
    """The latency of a cell: medians over questions. Questions are asked one at a time, twice; the faster run counts."""

    select_ms: float
    """Milliseconds before the language model: selecting, merging, and projecting merged tokens."""
    prefill_ms: float
    """Milliseconds of the language model's forward pass over the prompt, including a method's work inside the model."""
    prefill_ratio: float
    """`prefill_ms` divided by the unpruned model's, measured just before it."""
    latency_ratio: float
    """Selecting and prefill together divided by the unpruned prefill: above 1, pruning is slower than not pruning."""
    latency_low: float
    """The smallest `latency_ratio` of all single runs; together with the largest, it shows the noise."""
    latency_high: float
    """The largest `latency_ratio` of all single runs."""


@dataclass(frozen=True)
class Latency(Explained, Measured):
    """The measured latency of a cell, and what explains it."""


@dataclass(frozen=True)
class _Timed:
    """One run of one question."""

    select: float
    """Seconds before the language model."""
    prefill: float
    """Seconds of its forward."""
    tokens: tuple[int, ...]
    """Tokens, visual and text, that entered each layer."""


@dataclass(frozen=True)
class _Run:
    """The times of one question: seconds of its fastest repetition, and the ratio of every repetition."""

    select: float
    prefill: float
    unpruned: float
    ratios: Sequence[float]
    """For each repetition, selecting and prefill together divided by the unpruned prefill."""
    tokens: tuple[int, ...]
    """Tokens, visual and text, that entered each layer."""
    whole: tuple[int, ...]
    """The same of the unpruned model."""


def probe(session: Session, cells: Sequence[Cell], question: Question) -> dict[str, str]:
    """Try every cell on one question; return the names of the cells that fail, each with the reason."""
    failed: dict[str, str] = {}
    for batch in session.features.batches([[question]]):
        prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
        for cell in cells:
            try:
                _timed(session, cell, batch, prepared)
            except (PrunerMisused, Infeasible) as impossible:
                failed[cell.name] = str(impossible)
    return failed


def measure(
    session: Session,
    cells: Mapping[str, tuple[Cell, Mapping[str, Any]]],
    asked: Sequence[Question],
    path: Path,
    report: Callable[[int], object],
    overwrite: bool = False,
) -> dict[str, Latency]:
    """Measure the latencies of cells and keep them in a file; a cell is measured once.

    Args:
        session: the opened store and model.
        cells: for each name, the cell and the settings that its predictions are made with.
        asked: the questions, of which a few are timed.
        path: the file that keeps the latencies.
        report: called with the number of cells that have been measured since the last call.
        overwrite: whether to measure again what the file already holds.
    """
    rounds = spread(asked, session.experiment.sweep.rounds)
    conditions = [[question.question_id for question in rounds], machine()]
    measured_of = {name: digest([identity, conditions]) for name, (_, identity) in cells.items()}
    saved = {} if overwrite else _saved(path)
    left = [name for name in cells if saved.get(name, {}).get("of") != measured_of[name]]
    report(len(cells) - len(left))
    for start in range(0, len(left), _SAVED_EVERY):
        part = left[start : start + _SAVED_EVERY]
        for name, latency in zip(part, _measure(session, [cells[name][0] for name in part], rounds), strict=True):
            saved[name] = {"of": measured_of[name], **asdict(latency)}
        write_object(path, dict(sorted(saved.items())))
        report(len(part))
    return {name: Latency(**{k: v for k, v in saved[name].items() if k != "of"}) for name in cells}


def _saved(path: Path) -> dict[str, Any]:
    """Read what was measured before; raise DamagedRun (exit 4) if the file is damaged."""
    remedy = "delete it and run the sweep again, which measures its latencies anew"
    saved = read_object(path, remedy) or {}
    expected = {"of", *(field.name for field in fields(Latency))}
    before = expected - {field.name for field in fields(Explained)}
    earlier = (before, before - {"latency_low", "latency_high"})  # what earlier versions recorded is measured anew
    saved = {cell: times for cell, times in saved.items() if not (isinstance(times, dict) and times.keys() in earlier)}
    for cell, times in saved.items():
        if not isinstance(times, dict) or times.keys() != expected:
            raise DamagedRun(f"{path} is damaged (expected {', '.join(sorted(expected))} of {cell}): {remedy}")
    return saved


def spread(asked: Sequence[Question], count: int) -> list[Question]:
    """Choose `count` questions, spread evenly over all."""
    count = min(count, len(asked))
    return [asked[number * len(asked) // count] for number in range(count)]


def machine() -> str:
    """Describe the machine that latencies are measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _measure(session: Session, cells: Sequence[Cell], rounds: Sequence[Question]) -> list[Latency]:
    """Time every cell on every question of `rounds`; a run of the unpruned model precedes each group of neighbouring cells."""
    unpruned = _unpruned(session)
    runs_of_cells: list[list[_Run]] = [[] for _ in cells]
    for batch in session.features.batches([[question] for question in rounds]):
        prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
        _timed(session, unpruned, batch, prepared)  # warms caches up
        for start in range(0, len(cells), _NEIGHBOURS):
            group, runs = cells[start : start + _NEIGHBOURS], runs_of_cells[start : start + _NEIGHBOURS]
            for cell in () if runs[0] else group:
                _timed(session, cell, batch, prepared)  # loads the kernels of the method
            twice = [[_timed(session, cell, batch, prepared) for cell in (unpruned, *group)] for _ in range(2)]
            for place, of_cell in enumerate(runs, start=1):
                of_cell.append(_run([(timed[0], timed[place]) for timed in twice]))
    # The explainer comes behind all runs, because recording a graph empties the allocator's cache.
    explainer = Explainer.of(session.language)
    return [
        _medians(runs, explainer, isinstance(cell.pruner, InLLMPruner))
        for cell, runs in zip(cells, runs_of_cells, strict=True)
    ]


def _run(in_turn: Sequence[tuple[_Timed, _Timed]]) -> _Run:
    """Summarise the repetitions of one question: each is a run of the unpruned model and one of the cell."""
    whole, part = in_turn[0]
    return _Run(
        min(part.select for _, part in in_turn),
        min(part.prefill for _, part in in_turn),
        min(whole.prefill for whole, _ in in_turn),
        [(part.select + part.prefill) / whole.prefill for whole, part in in_turn],
        part.tokens,
        whole.tokens,
    )


def _medians(runs: Sequence[_Run], explainer: Explainer, inside: bool) -> Latency:
    """Take the medians over all questions, and the smallest and largest ratio of all repetitions.

    The prefill is explained as that of a method that drops tokens before the language model, or `inside`.
    """
    ratios = [ratio for run in runs for ratio in run.ratios]
    prefill = median(run.prefill for run in runs)
    measured = Measured(
        1000 * median(run.select for run in runs),
        1000 * prefill,
        median(run.prefill / run.unpruned for run in runs),
        median((run.select + run.prefill) / run.unpruned for run in runs),
        min(ratios),
        max(ratios),
    )
    pairs = [(explainer.explain(run.tokens, inside), explainer.explain(run.whole, False)) for run in runs]
    return Latency(**asdict(measured), **asdict(explained(prefill, pairs)))


def _unpruned(session: Session) -> Cell:
    """Make the cell of the unpruned model."""
    depth: int = session.language.model.config.num_hidden_layers
    pruner = plugin.find(pruners, UNPRUNED, Pruner)()
    patches = session.features.patches
    return Cell(UNPRUNED, pruner, patches, "original", None, Schedule(depth, patches))


@torch.no_grad()
def _timed(session: Session, cell: Cell, batch: FeatureBatch, prepared: Prepared) -> _Timed:
    """Measure the seconds of selecting, which reads the question anew, and of the prompt's forward pass."""
    language, device = session.language, session.language.device
    if "clip_text" in cell.pruner.reads:
        session.reader.clip.forget()
    begun = seconds_after_work(device)
    batch, pruned = prune_batch(cell.pruner, batch, cell.schedule.entering, session.reader)
    selected = seconds_after_work(device)
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    prompt = prompts(language, batch, prepared, pruned, cell.positions)
    model = language.answering(prompt.slots)
    entered = seconds_after_work(device)
    model(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        use_cache=True,
        logits_to_keep=1,
    )
    prefill = seconds_after_work(device) - entered
    visual = int(prompt.slots.sum())
    entering = (
        cell.schedule.tokens_per_layer if isinstance(cell.pruner, InLLMPruner) else [visual] * cell.schedule.depth
    )
    text = int(prompt.attention_mask.sum()) - visual
    return _Timed(selected - begun, prefill, tuple(tokens + text for tokens in entering))
