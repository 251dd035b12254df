"""The knowledge about every sampled row of every array: the best trial so far, and whether it explains the row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.progress import ProgressBar
from stage1_extract.diagnose.bases import FEATURES, ArrayRows
from stage1_extract.diagnose.bench import SMALLEST_CLOSE, Bench
from stage1_extract.diagnose.fit import Trial, compare, finish
from stage1_extract.diagnose.suspects import OTHER_IMAGES, Cause, Choice, Hypothesis, causes_key

PEAK = 16
"""A single value may differ by this many times the relative difference that is tolerated on average."""
ONE_ROUNDING = 1 / 3
"""Relative root mean square that one rounding may cause, in eps of the dtype, with a margin."""


@dataclass(frozen=True)
class RowFinding:
    """What is known about one row of one array."""

    row: int
    trial: Trial
    """The best trial so far."""
    causes: tuple[Cause, ...] = ()
    """What is wrong, if it is known; empty for a row that is as it should be."""
    known: bool = True
    """Whether the row is explained: right, or wrong by `causes`."""
    image: int | None = None
    """The row whose image this row shows; None where it is this row's own image."""
    note: str = ""
    """A sentence about a row that nothing explains."""

    @property
    def wrong(self) -> bool:
        """Whether the row is not what it should be."""
        return bool(self.causes) or not self.known


@dataclass(frozen=True)
class RowGap:
    """The difference between a stored row and the model's own, where their shapes overlap."""

    max_abs: float
    mean_abs: float
    allclose: bool

    @classmethod
    def between(cls, own: Tensor, stored: Tensor) -> "RowGap":
        """Measure the difference in float64."""
        overlap = tuple(slice(min(sizes)) for sizes in zip(own.shape, stored.shape, strict=True))
        ours, theirs = own[overlap].double(), stored[overlap].double()
        apart = (ours - theirs).abs()
        close = own.shape == stored.shape and torch.allclose(ours, theirs, atol=1e-5)
        return cls(apart.max().item(), apart.mean().item(), close)


class Evidence:
    """The findings so far, by array and row, and the measure of what explains a row."""

    def __init__(self, bench: Bench, rows: Sequence[int]) -> None:
        self.bench, self.rows = bench, list(rows)
        self.arrays = {name: ArrayRows(bench, name) for name in _in_order(bench.store.arrays) if name in bench.expected}
        self.findings: dict[str, dict[int, RowFinding]] = {name: {} for name in self.arrays}
        self.gaps: dict[str, list[RowGap]] = {}
        """Differences from the model's own features, by array, in the order of the sampled rows."""
        self.explaining: dict[str, Hypothesis] = {}
        """Hypotheses that explain a wrong row of any array, by `causes_key`."""
        self._allowed: dict[tuple[str, int], float] = {}

    def first_look(self) -> None:
        """Encode every sampled image once, as the checkpoint asks for, and compare all arrays with the result."""
        right = {"compute": self.bench.compute[0]}
        for row in ProgressBar(self.rows, "encode again", unit="images"):
            for name, rows in self.arrays.items():
                made, stored = finish(rows.base(right, row), right, self.bench.dtype(name)), rows.stored(row)
                trial = compare(right, made, stored)
                known = self.matches(name, row, trial)
                self.findings[name][row] = RowFinding(row, trial, trial.causes if known else (), known)
                self.gaps.setdefault(name, []).append(RowGap.between(made, stored))

    def unexplained(self, name: str) -> list[int]:
        """List the rows of an array that nothing explains yet."""
        return [row for row, finding in self.findings[name].items() if not finding.known]

    def matches(self, name: str, row: int, trial: Trial | None) -> bool:
        """Return whether a trial explains a row: bit for bit, or up to rounding where equal bits cannot be expected.

        Right features must be equal bit for bit in the environment that the store names. A cause may have been brought
        about by other code, whose last bits are not known; for a wrong row one rounding is tolerated.
        """
        if trial is None or trial.equal:
            return trial is not None
        if self.bench.made_elsewhere(name):
            allowed = self._rounding(name, row)
        elif trial.causes:
            allowed = max(SMALLEST_CLOSE, ONE_ROUNDING * torch.finfo(self.bench.dtype(name)).eps)
        else:
            return False
        return trial.residual <= allowed and trial.peak <= PEAK * allowed

    def _rounding(self, name: str, row: int) -> float:
        """Return the relative difference that is allowed on another device.

        In 16 bit, it is at most twice the difference that computing in float32 makes on this device.
        """
        allowed = self.bench.rounding(name)
        if self.bench.compute[0].value == "float32":
            return allowed
        if (name, row) not in self._allowed:
            rows, dtype = self.arrays[name], self.bench.dtype(name)
            own, wide = ({"compute": choice} for choice in (self.bench.compute[0], Choice("float32")))
            made = [finish(rows.base(hypothesis, row), hypothesis, dtype) for hypothesis in (own, wide)]
            self._allowed[name, row] = 2 * compare(own, *made).residual
        return min(allowed, self._allowed[name, row])

    def note(self, name: str, row: int, image: int, trial: Trial) -> bool:
        """Record a trial that explains a row, and return True; else record it if it is the best so far, and return False."""
        if self.matches(name, row, trial):
            causes = trial.causes + (() if image == row else (OTHER_IMAGES,))
            self.findings[name][row] = RowFinding(row, trial, causes, image=None if image == row else image)
            if trial.causes:
                self.explaining.setdefault(causes_key(trial.hypothesis), trial.hypothesis)
            return True
        if image == row and trial.rank() < self.findings[name][row].trial.rank():
            self.findings[name][row] = replace(self.findings[name][row], trial=trial)
        return False


def _in_order(names: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of the arrays; arrays whose causes explain other arrays come first."""
    yield from (name for name in FEATURES if name in names)
    yield from (name for name in names if name not in FEATURES)
