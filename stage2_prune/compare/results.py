"""Find saved predictions in run folders and single files, and read them back for comparison."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from configs.errors import EVAL
from stage2_prune.errors import DamagedRun, NotComparable, ResultsMissing
from stage2_prune.evaluation.prediction_lines import holds_predictions, made_with, read_lines
from stage2_prune.evaluation.predictions import PARTIAL, read_cells
from stage2_prune.evaluation.shortcuts import UNPRUNED
from stage2_prune.session.ask import Prediction

_SEED = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class MethodResult:
    """The predictions of one method at one budget, once per seed."""

    name: str
    """The name in tables, unique among the results that are compared."""
    folder: Path
    """The folder of the predictions."""
    stem: str
    """The name of the result's files, without the seed."""
    random: bool
    """Whether the result's files name seeds."""
    seeds: tuple[Mapping[str, Prediction], ...]
    """For each seed, predictions by question id; a method that is not random has a single entry."""
    identities: tuple[Mapping[str, Any], ...]
    """For each seed, the settings that `cells.json` records; empty where nothing is recorded."""
    left_out: frozenset[str] = frozenset()
    """Ids of questions that the files answer but that the last evaluation did not ask."""
    bootstrap: tuple[int, int] | None = None
    """Number of resamples and seed of the evaluation's intervals; None where they are not recorded."""
    trained: bool = False
    """Whether the method has trained weights."""

    @property
    def unpruned(self) -> bool:
        """Whether these are the unpruned model's answers."""
        return re.split("[-@]", self.stem)[0] == UNPRUNED

    @property
    def label(self) -> str | None:
        """What the config called the method; None where it is not recorded."""
        return self.identities[0].get("pruner")

    @property
    def keep(self) -> int | float | str | None:
        """The budget as the config stated it; None for a method without a budget, and where it is not recorded."""
        return self.identities[0].get("keep")

    @property
    def mean_tokens(self) -> float | None:
        """The mean of the visual tokens that enter a layer, of a method that drops them inside the language model."""
        entering = self.identities[0].get("tokens_per_layer")
        return sum(entering) / len(entering) if entering else None

    @property
    def questions(self) -> Collection[str]:
        """Ids of the questions that every seed answered."""
        first, *others = self.seeds
        return [name for name in first if all(name in other for other in others)]


def load(paths: Sequence[Path], only: Sequence[str]) -> tuple[list[MethodResult], list[str]]:
    """Load the results in run folders and prediction files.

    Args:
        paths: run folders and prediction files.
        only: patterns, of which a result's name must match at least one; if there are none, all results are loaded.

    Returns:
        The results, and sentences about files that were left out.

    Raises:
        ResultsMissing: (exit 5) naming `make eval`, if there are no predictions or none match.
    """
    files = list(dict.fromkeys(file for path in paths for file in _files(path)))
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        groups.setdefault((file.parent, _SEED.sub("", file.stem)), []).append(file)
    named = dict(zip(_names(list(groups)), groups.items(), strict=True))
    matching = {n: v for n, v in named.items() if not only or any(fnmatchcase(n, pattern) for pattern in only)}
    if not matching:
        raise ResultsMissing(f"expected results that match {' or '.join(only)}, there are only {', '.join(named)}")
    unfinished = sorted(str(part) for folder in {file.parent for file in files} for part in folder.glob(f"*{PARTIAL}"))
    notes = [f"{part} is unfinished and left out: run eval again to finish it" for part in unfinished]
    return [_result(name, *key, members) for name, (key, members) in matching.items()], notes


def unpruned_beside(result: MethodResult) -> MethodResult | None:
    """Load the unpruned model's answers from the folder of a result; None if the folder has none."""
    files = sorted(result.folder.glob(f"{UNPRUNED}-*.jsonl"))
    return _result(files[0].stem, result.folder, files[0].stem, files[:1]) if files else None


def _files(path: Path) -> list[Path]:
    """List the complete predictions of a folder's evaluation; a file stands for itself."""
    if path.is_file():
        if not holds_predictions(path):
            raise ResultsMissing(
                f"expected a file of predictions, {path} holds none: name a file in eval/predictions, or the run folder"
            )
        return [path]
    for folder in (path / "eval" / "predictions", path / "predictions", path):
        if files := sorted(folder.glob("*.jsonl")):
            return files
    raise ResultsMissing(f"expected predictions in {path}, there are none: make them with {EVAL}")


def _names(keys: Sequence[tuple[Path, str]]) -> list[str]:
    """Choose the shortest names that tell results apart: by file, by run and file, or by whole path."""
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
    """Return the run folder of a folder of predictions."""
    whole = folder.resolve()
    return whole.parents[1] if whole.parts[-2:] == ("eval", "predictions") else whole


def _result(name: str, folder: Path, stem: str, files: Sequence[Path]) -> MethodResult:
    cells = read_cells(folder.parent)
    records = [cells.get(file.stem, {}) for file in files]
    return MethodResult(
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
    """Read the answers of a file to the questions that its last evaluation asked.

    Raises:
        NotComparable: (exit 4) for a file that is cut or answers a question twice.
        DamagedRun: (exit 4) for a damaged file, or one whose answers were made with other settings.
    """
    lines, torn = read_lines(file)
    expected = made_with(record["identity"]) if record else None
    if expected is not None and any(line.made_with not in (None, expected) for line in lines):
        raise DamagedRun(
            f"{file} holds answers that were made with other settings than {file.parents[1] / 'cells.json'} says: put its own "
            "file back, or run eval (or sweep) again with --overwrite"
        )
    answers = {line.prediction.question_id: line.prediction for line in lines}
    if torn or len(answers) != len(lines):
        cut = " and a cut one" if torn else ""
        raise NotComparable(
            f"expected one whole line for each question in {file}, it has {len(lines)} whole lines{cut} about {len(answers)} "
            "questions: run eval (or sweep) again, which answers what is missing"
        )
    return {name: answer for name, answer in answers.items() if name not in record.get("left_out", ())}
