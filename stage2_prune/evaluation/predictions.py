"""Keep per-question predictions as JSONL, a file per cell: appended batch by batch, complete when renamed.

<run_dir>/eval/
  cells.json                        what each file was made with, and how long its selector took
  predictions/<cell>.jsonl          complete for the questions that were asked when it was made
  predictions/<cell>.jsonl.partial  an interrupted run's, resumed at its last whole batch
  .writer.lock                      held by the command that writes here

Every line is sealed (stage2_prune/session/sealed.py) and names the settings that made it, so that neither a flipped byte
nor another cell's file is taken for an answer. A line is looked up by its question, because a split may grow and shrink.
"""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from configs.files.atomic import sync_directory, write_atomically
from stage2_prune.errors import DamagedRun, RunLocked
from stage2_prune.evaluation.batching import Batching
from stage2_prune.evaluation.prediction_lines import ANEW, as_line, made_with, read_lines
from stage2_prune.session.ask import Prediction
from stage2_prune.session.identity import in_both, require_same
from stage2_prune.session.sealed import read_object, write_object
from store.questions.question import Question

PARTIAL = ".jsonl.partial"
_CELLS = "delete it and run eval (or sweep) again, which keeps the answers: every line of them names its own settings"


class PredictionFile:
    """The predictions of one cell for the questions that are asked; answers to other questions stay in the file."""

    def __init__(
        self,
        path: Path,
        batching: Batching,
        asked: Sequence[Question],
        identity: Mapping[str, Any],
        recorded: bool = True,
    ) -> None:
        """Read the answers that are on disk.

        Args:
            path: the file of complete predictions; the interrupted ones lie beside it.
            batching: how the questions are cut into batches.
            asked: the questions.
            identity: the settings of the cell.
            recorded: whether `cells.json` holds these settings. If it does not, lines of earlier versions, which do not
                name their settings, are refused.

        Raises:
            DamagedRun: (exit 4) if a file is damaged.
            OtherRun: (exit 2) for an answer to a question that has changed.
        """
        self.path, self._partial = path, path.with_suffix(PARTIAL)
        self._asked, self._made_with, self._recorded = asked, made_with(identity), recorded
        self._answers, torn = self._read(path)
        # If something else cut the complete file, go on as with an interrupted file.
        if torn and not self._partial.is_file():
            path.replace(self._partial)
            self._answers = {}
        wanted = batching.lacking(asked, self._answers)
        for question in wanted:
            self._answers.pop(question.question_id, None)
        batches = batching.cut(wanted)
        in_partial, _ = self._read(self._partial)
        self.left = [batch for batch in batches if any(question.question_id not in in_partial for question in batch)]
        """Batches that lack an answer; a batch that was answered in part is answered again as a whole."""
        asked_again = {question.question_id for batch in self.left for question in batch}
        kept = [prediction for name, prediction in in_partial.items() if name not in asked_again]
        if self._partial.is_file():
            write_atomically(self._partial, self._lines(kept))
        self._answers = {prediction.question_id: prediction for prediction in kept} | self._answers

    @property
    def rows(self) -> list[Prediction]:
        """The answers so far to the questions that are asked, in the order of the questions."""
        return [self._answers[q.question_id] for q in self._asked if q.question_id in self._answers]

    @property
    def left_out(self) -> list[str]:
        """Ids of the questions that the file answers but that are not asked now."""
        return sorted(self._answers.keys() - {question.question_id for question in self._asked})

    @property
    def finished(self) -> bool:
        """Whether every question is answered and the file is declared complete."""
        return not self.left and self.path.is_file() and not self._partial.is_file()

    def append(self, rows: Sequence[Prediction]) -> None:
        """Add the predictions of one batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._partial.open("a", encoding="utf-8") as file:
            file.write(self._lines(rows))
        self._answers |= {row.question_id: row for row in rows}

    def finish(self) -> None:
        """Declare the file complete; join earlier and new answers to one file, in question order."""
        if not self._partial.is_file():
            return
        if self.path.is_file() or [*self._answers] != [row.question_id for row in self.rows]:
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
        """Delete the complete and the interrupted predictions of a cell."""
        path.unlink(missing_ok=True)
        path.with_suffix(PARTIAL).unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[dict[str, Prediction], bool]:
        """Read the predictions of a file by question, and whether the file's end is cut.

        Two processes may have left two answers to one question: the first answer counts.
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
        answers: dict[str, Prediction] = {}
        for line in lines:
            answers.setdefault(line.prediction.question_id, line.prediction)
        for question in self._asked:
            if question.question_id in answers:
                _require_same_question(path, answers[question.question_id], question)
        return answers, torn

    def _lines(self, rows: Sequence[Prediction]) -> str:
        return "".join(as_line(row, self._made_with) for row in rows)


def _require_same_question(path: Path, prediction: Prediction, question: Question) -> None:
    """Refuse an answer to a question that has changed since the answer was given (OtherRun, exit 2)."""
    was = {"image": prediction.image, "kind": prediction.kind, "answers": list(prediction.answers)}
    now = {"image": question.image, "kind": question.kind, "answers": list(question.answers)}
    if prediction.question is not None:  # files of older versions do not hold the question's text
        was |= {"question": prediction.question}
        now |= {"question": question.question}
    if prediction.choices is not None and question.choices is not None:
        was |= {"choices": sorted(prediction.choices)}
        now |= {"choices": sorted(set(question.choices))}
    require_same(
        f"question {question.question_id} has changed since it was answered in {path}",
        was,
        now,
        remedy="run again with --overwrite to replace the answers, or with another --run-dir, and --store.path of this store, "
        "to keep them",
    )


@contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """Let no other command write below `folder`; raise RunLocked (exit 6) if another command is writing there."""
    folder.mkdir(parents=True, exist_ok=True)
    guard = FileLock(folder / ".writer.lock")
    try:
        guard.acquire(timeout=0)
    except Timeout:
        raise RunLocked(
            f"{folder} is being written by another process: wait for it, or stop it first, or name another --run-dir"
        ) from None
    try:
        for half_written in folder.rglob(".*.partial"):  # left by a killed process, as no other command writes here now
            half_written.unlink(missing_ok=True)
        yield
    finally:
        guard.release()


def refuse_other_runs(folder: Path, identities: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise OtherRun (exit 2), naming the settings that differ, if predictions were made with other settings."""
    recorded = read_cells(folder)
    for cell, identity in identities.items():
        old, now = recorded.get(cell, {}).get("identity", identity), identity
        if "questions" in old:  # an earlier version, which recorded the whole list of questions and fewer settings
            old, now = in_both(old, now)
        require_same(
            f"the predictions of {cell} in {folder} were made with other settings",
            old,
            now,
            remedy="run again with --overwrite to replace them, or with another --run-dir, and --store.path of this store, to "
            "keep them",
        )


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the record of each cell evaluated so far; raise DamagedRun (exit 4) if `cells.json` is damaged."""
    path = folder / "cells.json"
    cells = read_object(path, _CELLS) or {}
    if not all(isinstance(record, dict) and isinstance(record.get("identity"), dict) for record in cells.values()):
        raise DamagedRun(f"{path} is damaged (a cell lacks its settings): {_CELLS}")
    return cells


def write_cells(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the records of some cells and keep the others; several processes may do so at the same time."""
    if not records:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".cells.lock"):
        merged = read_cells(folder) | {cell: dict(record) for cell, record in records.items()}
        write_object(folder / "cells.json", dict(sorted(merged.items())))
