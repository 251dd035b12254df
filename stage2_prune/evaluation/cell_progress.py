"""Open the cells of an evaluation with the answers that are on disk, and record the settings that make each cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from configs.experiment import EvalSection
from stage2_prune.evaluation.answering import Answered
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.cells import Cell
from stage2_prune.evaluation.predictions import PredictionFile, read_cells, refuse_other_runs, write_cells
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.session.identity import digest
from stage2_prune.session.session import Session
from store.questions.question import Question

_NOTHING: Mapping[str, Any] = {}
_TIMES = ("selector_ms_per_image", "selector_ms_range")


@dataclass
class Progress:
    """A cell while it is evaluated: its predictions so far, its settings, and the time of its selector."""

    cell: Cell
    file: PredictionFile
    identity: dict[str, Any]
    """The settings that the cell's predictions are made with."""
    section: EvalSection
    selector: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """For each batch answered by this command: seconds of the method itself, and number of images."""

    def add(self, answered: Answered) -> None:
        """Write the answers to a batch into the cell's file."""
        self.file.append(answered.answers)
        if answered.images:
            self.selector.append((answered.seconds, answered.images))

    def record(self, before: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
        """Make the cell's record for `cells.json`; if nothing was answered now, keep the selector's time from `before`."""
        return {
            "identity": self.identity,
            "left_out": self.file.left_out,
            "bootstrap": [self.section.bootstrap, self.section.seed],
            "trained": isinstance(self.cell.pruner, TrainedPruner),
            **(self._times() if self.selector else {name: before.get(name) for name in _TIMES}),
        }

    def _times(self) -> dict[str, Any]:
        """Give the milliseconds per image: the mean, and the fastest and slowest of two or more batches, to show the noise."""
        batches = [1000 * seconds / images for seconds, images in self.selector]
        mean = 1000 * sum(seconds for seconds, _ in self.selector) / sum(images for _, images in self.selector)
        return dict(zip(_TIMES, (mean, [min(batches), max(batches)] if len(batches) > 1 else None), strict=True))


def open_progress(
    session: Session,
    cells: Sequence[Cell],
    digests: Mapping[str, str],
    asked: Sequence[Question],
    overwrite: bool,
) -> list[Progress]:
    """Open every cell with its answers on disk, and record the settings of each cell before its first prediction.

    Args:
        session: the opened store and model.
        cells: the cells to evaluate.
        digests: digests of the weights that methods use, by label.
        asked: the questions.
        overwrite: whether to delete the predictions that are there.

    Raises:
        OtherRun: (exit 2) for predictions of other settings.
        DamagedRun: (exit 4) for damaged files.
    """
    experiment = session.experiment
    folder = experiment.run_dir / "eval"
    conditions = _conditions(session)
    identities = {cell.name: conditions | _identity(session, cell, digests.get(cell.label)) for cell in cells}
    if not overwrite:
        refuse_other_runs(folder, identities)
    todo: list[Progress] = []
    recorded = {} if overwrite else read_cells(folder)
    for cell in cells:
        path = folder / "predictions" / f"{cell.name}.jsonl"
        if overwrite:
            PredictionFile.remove(path)
        identity = identities[cell.name]
        file = PredictionFile(path, Batching.of(experiment), asked, identity, cell.name in recorded)
        todo.append(Progress(cell, file, identity, experiment.eval))
    records = {p.cell.name: p.record(recorded.get(p.cell.name, _NOTHING)) for p in todo}
    write_cells(folder, {name: record for name, record in records.items() if record != recorded.get(name)})
    return todo


def _identity(session: Session, cell: Cell, weights: str | None) -> dict[str, Any]:
    """Gather the settings of a cell that its predictions depend on; `weights` is the digest of its method's weights."""
    arrays = session.features.fingerprints(cell.pruner.needs | {session.features.source})
    described: dict[str, Any] = {
        "pruner": cell.label,
        "parameters": json.loads(json.dumps(cell.pruner.parameters())),
        "code": sha256(cell.pruner.file.read_bytes()).hexdigest(),
        "code_with_imports": cell.pruner.code,
        "weights": weights,
        "features": {name: digest(fingerprint) for name, fingerprint in arrays.items()},
        "keep": cell.keep,
        "positions": cell.positions,
        "seed": cell.seed,
    }
    if cell.pruner.place == "in_llm":
        described["tokens_per_layer"] = list(cell.schedule.tokens_per_layer)
    return described


def _conditions(session: Session) -> dict[str, Any]:
    """Gather the settings that a prediction depends on beside its cell and its question."""
    section = session.experiment.eval
    others = {"eval.share_prefix": section.share_prefix, "eval.sort_by_length": section.sort_by_length}
    chosen = {name: True for name, is_on in others.items() if is_on}  # left out in runs of earlier versions
    return session.conditions | {"eval.split": section.split, "eval.rank": section.rank} | chosen
