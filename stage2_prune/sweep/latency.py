"""Time a cell, taking turns with the unpruned model: how long selecting takes, and reading one question's prompt."""

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
from store.questions.question import Question

_SAVED_EVERY = 50


@dataclass(frozen=True)
class Latency:
    """The latency of a cell: medians over questions. Questions are asked one at a time, twice; the faster run counts."""

    select_ms: float
    """Milliseconds before the language model: selecting, merging, and projecting merged tokens."""
    prefill_ms: float
    """Milliseconds of the language model's forward pass over the prompt, including a method's work inside the model."""
    prefill_ratio: float
    """`prefill_ms` divided by the unpruned model's, measured in turn."""
    latency_ratio: float
    """Selecting and prefill together divided by the unpruned prefill: above 1, pruning is slower than not pruning."""
    latency_low: float
    """The smallest `latency_ratio` of all single runs; together with the largest, it shows the noise."""
    latency_high: float
    """The largest `latency_ratio` of all single runs."""


@dataclass(frozen=True)
class _Run:
    """The times of one question: seconds of its fastest repetition, and the ratio of every repetition."""

    select: float
    prefill: float
    unpruned: float
    ratios: Sequence[float]
    """For each repetition, selecting and prefill together divided by the unpruned prefill."""


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
    # Earlier versions recorded no noise: cells that they measured are measured again.
    earlier = expected - {"latency_low", "latency_high"}
    saved = {cell: times for cell, times in saved.items() if not (isinstance(times, dict) and times.keys() == earlier)}
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
    """Time every cell on every question of `rounds`, in turn with the unpruned model."""
    unpruned = _unpruned(session)
    runs_of_cells: list[list[_Run]] = [[] for _ in cells]
    for batch in session.features.batches([[question] for question in rounds]):
        prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
        _timed(session, unpruned, batch, prepared)  # warms caches up
        for runs, cell in zip(runs_of_cells, cells, strict=True):
            in_turn = [
                (_timed(session, unpruned, batch, prepared), _timed(session, cell, batch, prepared)) for _ in range(2)
            ]
            unpruned_times, cell_times = zip(*in_turn, strict=True)
            select, prefill = (min(times) for times in zip(*cell_times, strict=True))
            pairs = zip(cell_times, unpruned_times, strict=True)
            ratios = [(selecting + reading) / whole for (selecting, reading), (_, whole) in pairs]
            runs.append(_Run(select, prefill, min(whole for _, whole in unpruned_times), ratios))
    return [_medians(runs) for runs in runs_of_cells]


def _medians(runs: Sequence[_Run]) -> Latency:
    """Take the medians over all questions, and the smallest and largest ratio of all repetitions."""
    ratios = [ratio for run in runs for ratio in run.ratios]
    return Latency(
        1000 * median(run.select for run in runs),
        1000 * median(run.prefill for run in runs),
        median(run.prefill / run.unpruned for run in runs),
        median((run.select + run.prefill) / run.unpruned for run in runs),
        min(ratios),
        max(ratios),
    )


def _unpruned(session: Session) -> Cell:
    """Make the cell of the unpruned model."""
    depth: int = session.language.model.config.num_hidden_layers
    pruner = plugin.find(pruners, UNPRUNED, Pruner)()
    patches = session.features.patches
    return Cell(UNPRUNED, pruner, patches, "original", None, Schedule(depth, patches))


@torch.no_grad()
def _timed(session: Session, cell: Cell, batch: FeatureBatch, prepared: Prepared) -> tuple[float, float]:
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
    return selected - begun, seconds_after_work(device) - entered
