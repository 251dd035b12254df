"""Saved predictions, found and read back for comparison: run folders and single files alike."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stage2_prune.errors import DamagedRun, NotComparable, ResultsMissing
from stage2_prune.evaluation.prediction_lines import made_with, read_lines
from stage2_prune.evaluation.predictions import PARTIAL, read_cells
from stage2_prune.evaluation.summary import UNPRUNED
from stage2_prune.session.ask import Prediction

_SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class Result:
    """One method at one budget: its predictions, once per seed."""

    name: str
    """As tables say it: unique among the results that are compared."""
    folder: Path
    """Where its predictions lie."""
    stem: str
    """Name of its files, without the seed."""
    random: bool
    """Whether its files name seeds."""
    seeds: tuple[Mapping[str, Prediction], ...]
    """Predictions by question id; of a method that is not random, once."""
    identities: tuple[Mapping[str, Any], ...]
    """What each was made with, from `cells.json`; empty where that is not known."""
    left_out: frozenset[str] = frozenset()
    """Ids of questions that its files answer, but that its last evaluation did not ask."""
    bootstrap: tuple[int, int] | None = None
    """Resamples and seed of its evaluation's intervals; None where that is not recorded."""
    trained: bool = False
    """Whether its method has trained weights."""

    @property
    def unpruned(self) -> bool:
        """Whether it is the model's own answers."""
        return re.split("[-@]", self.stem)[0] == UNPRUNED

    @property
    def questions(self) -> Collection[str]:
        """Ids that every seed answered."""
        first, *others = self.seeds
        return [name for name in first if all(name in other for other in others)]


def load(paths: Sequence[Path], only: Sequence[str]) -> tuple[list[Result], list[str]]:
    """The results in run folders and prediction files whose names match any of `only` (all, if there is none).

    Also what was left out of them, in sentences. Raises ResultsMissing (exit 5) naming `make eval`.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        groups.setdefault((file.parent, _SEED.sub("", file.stem)), []).append(file)
    named = dict(zip(_names(list(groups)), groups.items(), strict=True))
    wanted = {n: v for n, v in named.items() if not only or any(fnmatchcase(n, pattern) for pattern in only)}
    if not wanted:
        raise ResultsMissing(f"expected results that match {' or '.join(only)}, there are only {', '.join(named)}")
    unfinished = sorted(str(part) for folder in {file.parent for file in files} for part in folder.glob(f"*{PARTIAL}"))
    notes = [f"{part} is unfinished and left out: run eval again to finish it" for part in unfinished]
    return [_result(name, *key, members) for name, (key, members) in wanted.items()], notes


def unpruned_beside(result: Result) -> Result | None:
    """The model's own answers that lie where a result lies."""
    found = sorted(result.folder.glob(f"{UNPRUNED}-*.jsonl"))
    return _result(found[0].stem, result.folder, found[0].stem, found[:1]) if found else None


def _files(path: Path) -> list[Path]:
    """A file itself; of a folder, all complete predictions of its evaluation."""
    if path.is_file():
        return [path]
    for folder in (path / "eval" / "predictions", path / "predictions", path):
        if found := sorted(folder.glob("*.jsonl")):
            return found
    raise ResultsMissing(f"expected predictions in {path}, there are none: make them with `make eval`")


def _names(keys: Sequence[tuple[Path, str]]) -> list[str]:
    """The shortest way to tell results apart: by file, by run and file, by whole path."""
    ways: list[Callable[[Path, str], str]] = [
        lambda _, stem: stem,
        lambda folder, stem: f"{_run(folder).name}/{stem}",
        lambda folder, stem: f"{folder.resolve() / stem}",
    ]
    for way in ways:
        names = [way(*key) for key in keys]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two keys are one path")


def _run(folder: Path) -> Path:
    """The run folder of a folder of predictions."""
    whole = folder.resolve()
    return whole.parents[1] if whole.parts[-2:] == ("eval", "predictions") else whole


def _result(name: str, folder: Path, stem: str, files: Sequence[Path]) -> Result:
    cells = read_cells(folder.parent)
    records = [cells.get(file.stem, {}) for file in files]
    return Result(
        name,
        folder,
        stem,
        any(file.stem != stem for file in files),
        tuple(_by_question(file, record) for file, record in zip(files, records, strict=True)),
        tuple(record.get("identity", {}) for record in records),
        frozenset(name for record in records for name in record.get("left_out", ())),
        next((tuple(record["bootstrap"]) for record in records if "bootstrap" in record), None),
        any(record.get("trained", False) for record in records),
    )


def _by_question(file: Path, record: Mapping[str, Any]) -> dict[str, Prediction]:
    """The answers of a file to the questions that its last evaluation asked.

    Raises NotComparable (exit 4) for a file that is cut, and DamagedRun (exit 4) for one that is not as it was written.
    """
    lines, torn = read_lines(file)
    expected = made_with(record["identity"]) if record else None
    if expected is not None and any(line.made_with not in (None, expected) for line in lines):
        raise DamagedRun(
            f"{file} holds answers that were made with other settings than {file.parents[1] / 'cells.json'} says: put its own "
            "file back, or run eval (or sweep) again with --overwrite"
        )
    found = {line.prediction.question_id: line.prediction for line in lines}
    if torn or len(found) != len(lines):
        cut = " and a cut one" if torn else ""
        raise NotComparable(
            f"expected one whole line for each question in {file}, it has {len(lines)} whole lines{cut} about {len(found)} "
            "questions: run eval (or sweep) again, which answers what is missing"
        )
    return {name: one for name, one in found.items() if name not in record.get("left_out", ())}
