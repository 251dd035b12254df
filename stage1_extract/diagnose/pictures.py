"""Try changed pictures and image processors. Each costs a forward of the tower, so they come last, the likely ones first."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from configs.progress import ProgressBar
from stage1_extract.diagnose.bases import FEATURES
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.search import Search
from stage1_extract.diagnose.suspect_pictures import LIKELY_FIRST, pixel_axes, together
from stage1_extract.diagnose.suspects import Hypothesis, causes_key

EXEMPLARS = 2
"""Number of unexplained rows on which changed pictures are tried."""
OPERATIONS = 2.5e13
"""Floating-point operations of two CPU cores in about three minutes: 70 forwards of CLIP ViT-L/14-336."""
ACCELERATION = 20
"""How many times as fast as two CPU cores a GPU is, at least."""
LEAST_TRIES, MOST_TRIES = 60, 600
"""Bounds of the number of forwards that is chosen by the size of the tower."""
MOST_CHANGES = 3
"""Number of changes that are combined at most; with enough changes, anything could be explained."""


def affordable(bench: Bench) -> int:
    """Return how many forwards of the tower take about three minutes, by the size of the tower and the kind of device."""
    half = bench.encoder.half
    operations = 2 * sum(weight.numel() for weight in half.tower.parameters()) * half.facts.patches
    faster = 1 if bench.device.type == "cpu" else ACCELERATION
    return min(MOST_TRIES, max(LEAST_TRIES, int(OPERATIONS * faster / operations)))


class Pictures:
    """Tries changed pictures on a few rows; a change that explains one row is tried on all others."""

    def __init__(self, search: Search, tries: int) -> None:
        """Prepare the trials; all of them together may cost `tries` forwards."""
        self._search, self._evidence, self._bench = search, search.evidence, search.evidence.bench
        self._axes = pixel_axes(self._bench.encoder.image_processor.stock)
        self.left = tries
        """Number of forwards that may still be spent."""

    def explain(self, name: str) -> None:
        """Try one change of the picture, then two, then three; combinations of changes with small residuals come first."""
        findings = self._evidence.findings[name]
        exemplars = [row for row in self._evidence.unexplained(name) if not findings[row].note][:EXEMPLARS]
        with ProgressBar[None](what=f"diagnose {name}", total=self.left, unit="forwards") as bar:
            residuals = {row: self._try_each(name, row, together(self._axes, 1), bar) for row in exemplars}
            for row in exemplars:
                for count in range(2, MOST_CHANGES + 1):
                    self._try_each(name, row, _promising(together(self._axes, count), residuals[row]), bar)
        for row in exemplars:
            if not findings[row].known:
                best = findings[row].trial.hypothesis
                self._search.try_dtypes(name, row, {axis: best[axis] for axis in LIKELY_FIRST if axis in best})

    def _try_each(
        self, name: str, row: int, hypotheses: Iterable[Hypothesis], bar: ProgressBar[None]
    ) -> dict[str, float]:
        """Try changed pictures on one row until a change explains the row; return the residual of each change."""
        own = self._bench.pixels(row, {})["pixel_values"]
        residuals: dict[str, float] = {}
        for hypothesis in hypotheses:
            if self.left <= 0 or self._evidence.findings[name][row].known:
                break
            if torch.equal(self._bench.pixels(row, hypothesis)["pixel_values"], own):
                continue
            self.left -= 1
            residuals[causes_key(hypothesis)] = self._try(name, row, {**hypothesis, "compute": self._bench.compute[0]})
            bar.update()
        return residuals

    def _try(self, name: str, row: int, picture: Hypothesis) -> float:
        """Try one changed picture on one row, with its own image and then with others; return the residual."""
        rows, others = self._evidence.arrays[name], self._search.others
        trial = rows.best(
            picture, row, row, [rows.own_layer()] if name not in FEATURES or name == "projected" else None
        )
        if trial is not None and self._evidence.note(name, row, row, trial):
            self._search.settle(name, trial.hypothesis)
        elif others.row_of_features(name, row, picture) is not None and others.explain(name, row, picture):
            self._search.settle(name, self._evidence.findings[name][row].trial.hypothesis)
        return math.inf if trial is None else trial.residual


def _promising(hypotheses: Iterable[Hypothesis], residuals: Mapping[str, float]) -> Sequence[Hypothesis]:
    """Sort combinations of changes by the sum of the residuals that each of their changes leaves when made alone.

    A combination with a change that has no effect is left out. Sums are rounded, so that small differences keep the order
    of likelihood.
    """

    def sum_of_members(hypothesis: Hypothesis) -> float:
        return round(sum(residuals.get(causes_key({axis: choice}), math.inf) for axis, choice in hypothesis.items()), 1)

    effective = (hypothesis for hypothesis in hypotheses if sum_of_members(hypothesis) < math.inf)
    return sorted(effective, key=sum_of_members)
