"""Per-question predictions as JSONL, a file per cell: appended batch by batch, complete when renamed.

<run_dir>/eval/
  cells.json                        what each file was made with, and how long its selector took
  predictions/<cell>.jsonl          complete for the questions that were asked when it was made
  predictions/<cell>.jsonl.partial  an interrupted run's, resumed at its last whole batch
  .writer.lock                      held by the command that writes here

Every line is sealed (stage2_prune/session/sealed.py) and names the settings that it was made with, so that neither a flipped byte
nor another cell's file is taken for an answer. A line is found by its question: a split may grow and shrink.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.files.atomic import sync_directory, write_atomically
from stage2_prune.errors import DamagedRun, OtherRun, RunLocked
from stage2_prune.evaluation.prediction_lines import ANEW, as_line, made_with, read_lines
from stage2_prune.session.ask import Prediction
from stage2_prune.session.identity import differences
from stage2_prune.session.sealed import read_object, write_object
from store.questions.question import Question

PARTIAL = ".jsonl.partial"
_SHOWN = 5
_CELLS = "delete it and run eval (or sweep) again, which keeps the answers: every line of them names its own settings"


class PredictionFile:
    """The predictions of one cell for the questions asked; those of other questions stay in the file."""

    def __init__(
        self, path: Path, batch_size: int, asked: Sequence[Question], identity: Mapping[str, Any], recorded: bool = True
    ) -> None:
        """Read what is there.

        `identity` is what the cell is made with; `recorded` says whether `cells.json` has it, without which lines that
        do not name their settings are refused. Raises DamagedRun (exit 4), and OtherRun (exit 2) for an answer to a
        question that has changed.
        """
        self.path, self._partial = path, path.with_suffix(PARTIAL)
        self._asked, self._made_with, self._recorded = asked, made_with(identity), recorded
        self._answers, torn = self._read(path)
        if torn and not self._partial.is_file():  # cut short by other hands: an interrupted file
            path.replace(self._partial)
            self._answers = {}
        wanted = [question for question in asked if question.question_id not in self._answers]
        batches = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        begun, _ = self._read(self._partial)
        self.left = [batch for batch in batches if any(question.question_id not in begun for question in batch)]
        """Batches without an answer; one that was answered in part is answered as a whole, as it was begun."""
        again = {question.question_id for batch in self.left for question in batch}
        kept = [one for name, one in begun.items() if name not in again]
        if self._partial.is_file():
            write_atomically(self._partial, self._lines(kept))
        self._answers = {one.question_id: one for one in kept} | self._answers

    @property
    def rows(self) -> list[Prediction]:
        """The answers so far to the questions asked, in their order."""
        return [self._answers[q.question_id] for q in self._asked if q.question_id in self._answers]

    @property
    def left_out(self) -> list[str]:
        """Ids of the questions that were asked once and are not asked now."""
        return sorted(self._answers.keys() - {question.question_id for question in self._asked})

    @property
    def finished(self) -> bool:
        """Whether every question is answered and the file declared complete."""
        return not self.left and self.path.is_file() and not self._partial.is_file()

    def append(self, rows: Sequence[Prediction]) -> None:
        """Add the predictions of one batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._partial.open("a", encoding="utf-8") as file:
            file.write(self._lines(rows))
        self._answers |= {row.question_id: row for row in rows}

    def finish(self) -> None:
        """Declare the file complete; what was complete before and what is new become one file, in question order."""
        if not self._partial.is_file():
            return
        if self.path.is_file():
            others = [self._answers[name] for name in self.left_out]
            write_atomically(self.path, self._lines([*self.rows, *others]))
            self._partial.unlink()
            return
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self.path)
        sync_directory(self.path.parent)

    @staticmethod
    def remove(path: Path) -> None:
        """Forget what is on disk."""
        path.unlink(missing_ok=True)
        path.with_suffix(PARTIAL).unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[dict[str, Prediction], bool]:
        """The predictions of a file by question, and whether its end is cut.

        Of two to one question, as two processes may have left, the first counts.
        """
        lines, torn = read_lines(path)
        if torn and not lines and path == self.path:
            raise DamagedRun(f"{path} is damaged (no line of it can be read): {ANEW}")
        if any(line.made_with not in (None, self._made_with) for line in lines):
            raise DamagedRun(
                f"{path} holds answers that were made with other settings than its own, such as another cell's or another "
                f"run's: put its own file back, or {ANEW}"
            )
        if not self._recorded and any(line.made_with is None for line in lines):
            raise DamagedRun(f"{path.parents[1] / 'cells.json'} does not say what {path} was made with: {ANEW}")
        found = {line.prediction.question_id: line.prediction for line in reversed(lines)}
        found = {line.prediction.question_id: found[line.prediction.question_id] for line in lines}
        for question in self._asked:
            if question.question_id in found:
                _require_same(path, found[question.question_id], question)
        return found, torn

    def _lines(self, rows: Sequence[Prediction]) -> str:
        return "".join(as_line(row, self._made_with) for row in rows)


def _require_same(path: Path, prediction: Prediction, question: Question) -> None:
    """Refuse an answer to a question that has changed since (OtherRun, exit 2)."""
    was = {"image": prediction.image, "kind": prediction.kind, "answers": list(prediction.answers)}
    now = {"image": question.image, "kind": question.kind, "answers": list(question.answers)}
    if prediction.question is not None:  # files of older versions do not say more
        was |= {"question": prediction.question}
        now |= {"question": question.question}
    if prediction.choices is not None and question.choices is not None:
        was |= {"choices": sorted(prediction.choices)}
        now |= {"choices": sorted(set(question.choices))}
    if differing := differences(was, now):
        raise OtherRun(
            f"question {question.question_id} has changed since it was answered in {path} ({'; '.join(differing)}): run again "
            "with --overwrite to replace the answers, or with another --run-dir, and --store.path of this store, to keep them"
        )


@contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """Be the only command that writes below `folder`; RunLocked (exit 6) if there is another."""
    folder.mkdir(parents=True, exist_ok=True)
    guard = FileLock(folder / ".writer.lock")
    try:
        guard.acquire(timeout=0)
    except Timeout:
        raise RunLocked(
            f"{folder} is being written by another process: wait for it, or stop it first, or name another --run-dir"
        ) from None
    try:
        for half_written in folder.rglob(".*.partial"):  # by a killed process: nobody else writes here
            half_written.unlink(missing_ok=True)
        yield
    finally:
        guard.release()


def refuse_other_runs(folder: Path, identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise OtherRun (exit 2), naming what differs, if predictions were made with other settings."""
    recorded = read_cells(folder)
    for cell, identity in identities.items():
        old, now = recorded.get(cell, {}).get("identity", identity), identity
        if "questions" in old:  # an earlier version, which knew its answers by the whole list of questions
            both = old.keys() & now.keys()
            old, now = ({key: one[key] for key in both} for one in (old, now))
        if differing := differences(old, now):
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise OtherRun(
                f"the predictions of {cell} in {folder} were made with other settings "
                f"({'; '.join(differing[:_SHOWN])}{more}): run again with --overwrite to replace them, "
                "or with another --run-dir, and --store.path of this store, to keep them"
            )


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the record of each cell evaluated so far; DamagedRun (exit 4) if their file is not as it was written."""
    path = folder / "cells.json"
    cells = read_object(path, _CELLS) or {}
    if not all(isinstance(record, dict) and isinstance(record.get("identity"), dict) for record in cells.values()):
        raise DamagedRun(f"{path} is damaged (a cell lacks its settings): {_CELLS}")
    return cells


def write_cells(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the records of some cells, keep the others; several processes may do so at a time."""
    if not records:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".cells.lock"):
        merged = read_cells(folder) | {cell: dict(record) for cell, record in records.items()}
        write_object(folder / "cells.json", dict(sorted(merged.items())))
