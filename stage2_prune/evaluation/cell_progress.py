"""The cells of an evaluation with what is on disk of each, and what each was made with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from configs.experiment import EvalSection
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
    """One cell while it is evaluated."""

    cell: Cell
    file: PredictionFile
    identity: dict[str, Any]
    section: EvalSection
    selector: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    """Seconds of the method itself and images, of every batch answered now."""

    def record(self, before: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
        """What `cells.json` keeps of it; the time of its selector as it was before, where nothing was answered now."""
        return {
            "identity": self.identity,
            "left_out": self.file.left_out,
            "bootstrap": [self.section.bootstrap, self.section.seed],
            "trained": isinstance(self.cell.pruner, TrainedPruner),
            **(self._times() if self.selector else {name: before.get(name) for name in _TIMES}),
        }

    def _times(self) -> dict[str, Any]:
        """Milliseconds per image: the mean, and the fastest and slowest batch, of which two or more tell the noise."""
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
    """The cells with what is on disk of each; its identity is recorded before its first prediction.

    Raises OtherRun (exit 2) for predictions of other settings, DamagedRun (exit 4) for files that are not as written.
    """
    experiment = session.experiment
    folder = experiment.run_dir / "eval"
    features, common = session.features, _identity(session)
    identities = {
        cell.name: common
        | {
            "pruner": cell.label,
            "parameters": json.loads(json.dumps(cell.pruner.parameters())),
            "code": sha256(cell.pruner.file.read_bytes()).hexdigest(),
            "code_with_imports": cell.pruner.code,
            "weights": digests.get(cell.label),
            "features": {
                name: digest(fingerprint)
                for name, fingerprint in features.fingerprints(cell.pruner.needs | {features.source}).items()
            },
            "keep": cell.keep,
            "positions": cell.positions,
            "seed": cell.seed,
        }
        | ({"tokens_per_layer": list(cell.schedule.tokens_per_layer)} if cell.pruner.place == "in_llm" else {})
        for cell in cells
    }
    if not overwrite:
        refuse_other_runs(folder, identities)
    todo: list[Progress] = []
    recorded = {} if overwrite else read_cells(folder)
    for cell in cells:
        path = folder / "predictions" / f"{cell.name}.jsonl"
        if overwrite:
            PredictionFile.remove(path)
        identity = identities[cell.name]
        file = PredictionFile(path, experiment.eval.batch_size, asked, identity, cell.name in recorded)
        todo.append(Progress(cell, file, identity, experiment.eval))
    records = {p.cell.name: p.record(recorded.get(p.cell.name, _NOTHING)) for p in todo}
    write_cells(folder, {name: record for name, record in records.items() if record != recorded.get(name)})
    return todo


def _identity(session: Session) -> dict[str, Any]:
    """Everything but the cell itself and the question that a prediction depends on."""
    section = session.experiment.eval
    return session.conditions | {"eval.split": section.split, "eval.rank": section.rank}
