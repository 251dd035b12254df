"""What a cell costs on the clock: selecting and reading the prompt of one question, in turn with the unpruned model."""

import platform
import time
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

UNPRUNED = "keep_all"
_SAVED_EVERY = 50


@dataclass(frozen=True)
class Latency:
    """Medians over questions that are asked one at a time, twice each, of which the faster counts."""

    select_ms: float
    """Before the language model: selecting, merging, and projecting what was merged."""
    prefill_ms: float
    """The language model's forward over the prompt, with what a method does inside it."""
    prefill_ratio: float
    """`prefill_ms` over the unpruned model's, measured in turn."""
    latency_ratio: float
    """Selecting and prefill together over the unpruned prefill: above 1, pruning is slower than not pruning."""
    latency_low: float
    """The smallest such ratio among all runs, of every question and its repetition: with the largest one, the noise."""
    latency_high: float
    """The largest such ratio."""


@dataclass(frozen=True)
class _Run:
    """The clock on one question: seconds of the fastest of its repetitions, and what each of them gave."""

    select: float
    prefill: float
    unpruned: float
    ratios: Sequence[float]
    """Selecting and prefill over the unpruned prefill."""


def probe(session: Session, cells: Sequence[Cell], question: Question) -> dict[str, str]:
    """Why cells cannot be answered, by name: each of them prunes and reads one question."""
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
    told: Callable[[int], object],
    overwrite: bool = False,
) -> dict[str, Latency]:
    """The latencies of cells, by name, each given with what its predictions are made with; `path` keeps them, measured once
    unless `overwrite`.
    """
    rounds = spread(asked, session.experiment.sweep.rounds)
    here = [[one.question_id for one in rounds], machine()]
    of = {name: digest([identity, here]) for name, (_, identity) in cells.items()}
    saved = {} if overwrite else _saved(path)
    left = [name for name in cells if saved.get(name, {}).get("of") != of[name]]
    told(len(cells) - len(left))
    for start in range(0, len(left), _SAVED_EVERY):
        part = left[start : start + _SAVED_EVERY]
        for name, found in zip(part, _measure(session, [cells[name][0] for name in part], rounds), strict=True):
            saved[name] = {"of": of[name], **asdict(found)}
        write_object(path, dict(sorted(saved.items())))
        told(len(part))
    return {name: Latency(**{k: v for k, v in saved[name].items() if k != "of"}) for name in cells}


def _saved(path: Path) -> dict[str, Any]:
    """What was measured before; DamagedRun (exit 4) if the file is not as it was written."""
    remedy = "delete it and run the sweep again, which measures its latencies anew"
    saved = read_object(path, remedy) or {}
    expected = {"of", *(field.name for field in fields(Latency))}
    earlier = expected - {"latency_low", "latency_high"}  # versions that did not tell the noise: measured anew
    saved = {cell: found for cell, found in saved.items() if not (isinstance(found, dict) and found.keys() == earlier)}
    for cell, found in saved.items():
        if not isinstance(found, dict) or found.keys() != expected:
            raise DamagedRun(f"{path} is damaged (expected {', '.join(sorted(expected))} of {cell}): {remedy}")
    return saved


def spread(asked: Sequence[Question], count: int) -> list[Question]:
    """So many questions, evenly over all."""
    count = min(count, len(asked))
    return [asked[place * len(asked) // count] for place in range(count)]


def machine() -> str:
    """What a latency was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _measure(session: Session, cells: Sequence[Cell], rounds: Sequence[Question]) -> list[Latency]:
    unpruned = _unpruned(session)
    seconds: list[list[_Run]] = [[] for _ in cells]
    for batch in session.features.batches([[question] for question in rounds]):
        prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
        _timed(session, unpruned, batch, prepared)
        for found, cell in zip(seconds, cells, strict=True):
            both = [
                (_timed(session, unpruned, batch, prepared), _timed(session, cell, batch, prepared)) for _ in range(2)
            ]
            wholes, parts = zip(*both, strict=True)
            select, prefill = (min(times) for times in zip(*parts, strict=True))
            ratios = [(chosen + read) / whole for (chosen, read), (_, whole) in zip(parts, wholes, strict=True)]
            found.append(_Run(select, prefill, min(prefill for _, prefill in wholes), ratios))
    return [_medians(found) for found in seconds]


def _medians(runs: Sequence[_Run]) -> Latency:
    """Of all questions."""
    ratios = [ratio for one in runs for ratio in one.ratios]
    return Latency(
        1000 * median(one.select for one in runs),
        1000 * median(one.prefill for one in runs),
        median(one.prefill / one.unpruned for one in runs),
        median((one.select + one.prefill) / one.unpruned for one in runs),
        min(ratios),
        max(ratios),
    )


def _unpruned(session: Session) -> Cell:
    depth: int = session.language.model.config.num_hidden_layers
    pruner = plugin.find(pruners, UNPRUNED, Pruner)()
    patches = session.features.patches
    return Cell(UNPRUNED, pruner, patches, "original", None, Schedule(depth, patches))


@torch.no_grad()
def _timed(session: Session, cell: Cell, batch: FeatureBatch, prepared: Prepared) -> tuple[float, float]:
    """Seconds of selecting, which reads the question anew, and of the prompt's forward."""
    if "clip_text" in cell.pruner.reads:
        session.reader.clip.forget()
    begun = _now(session)
    batch, pruned = prune_batch(cell.pruner, batch, cell.schedule.entering, session.reader)
    selected = _now(session)
    language = session.language
    if isinstance(cell.pruner, InLLMPruner):
        language = pruning_inside(language, cell.pruner, cell.schedule, cell.positions)
    prompt = prompts(language, batch, prepared, pruned, cell.positions)
    model = language.answering(prompt.slots)
    entered = _now(session)
    model(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        position_ids=prompt.position_ids,
        use_cache=True,
        logits_to_keep=1,
    )
    return selected - begun, _now(session) - entered


def _now(session: Session) -> float:
    """Seconds, after what the device was still doing."""
    if session.language.device.type == "cuda":
        torch.cuda.synchronize(session.language.device)
    return time.perf_counter()
