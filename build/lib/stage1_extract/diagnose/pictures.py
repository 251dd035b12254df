"""Other pictures and other image processors: every one costs a forward of the tower, so they come last, the likely first."""

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
"""Unexplained rows on which other pictures are tried."""
OPERATIONS = 2.5e13
"""Floating-point operations that two CPU cores do in some three minutes: 70 forwards of CLIP ViT-L/14-336."""
ACCELERATION = 20
"""How much faster a GPU is, at least."""
LEAST_TRIES, MOST_TRIES = 60, 600
MOST_CHANGES = 3
"""Things about a picture that are changed at once: with enough freedom everything is explained."""


def affordable(bench: Bench) -> int:
    """Return how many forwards of the tower may be spent: some three minutes, by the size of the tower and its device."""
    half = bench.encoder.half
    operations = 2 * sum(weight.numel() for weight in half.tower.parameters()) * half.facts.patches
    faster = 1 if bench.device.type == "cpu" else ACCELERATION
    return min(MOST_TRIES, max(LEAST_TRIES, int(OPERATIONS * faster / operations)))


class Pictures:
    """The trial of other pictures on a few rows; what explains one of them is tried on all others."""

    def __init__(self, search: Search, tries: int) -> None:
        """`tries` is the number of forwards that all trials together may cost."""
        self._search, self._evidence, self._bench = search, search.evidence, search.evidence.bench
        self._axes = pixel_axes(self._bench.encoder.image_processor.stock)
        self.left = tries

    def explain(self, name: str) -> None:
        """Change one thing about the picture, then two, then three, those first that leave least unexplained alone."""
        found = self._evidence.found[name]
        exemplars = [row for row in self._evidence.unexplained(name) if not found[row].note][:EXEMPLARS]
        with ProgressBar[None](what=f"diagnose {name}", total=self.left, unit="forwards") as bar:
            left = {row: self._try_each(name, row, together(self._axes, 1), bar) for row in exemplars}
            for row in exemplars:
                for count in range(2, MOST_CHANGES + 1):
                    self._try_each(name, row, _promising(together(self._axes, count), left[row]), bar)
        for row in exemplars:
            if not found[row].known:
                best = found[row].trial.hypothesis
                self._search.try_dtypes(name, row, {axis: best[axis] for axis in LIKELY_FIRST if axis in best})

    def _try_each(
        self, name: str, row: int, hypotheses: Iterable[Hypothesis], bar: ProgressBar[None]
    ) -> dict[str, float]:
        """Try other pictures on one row until one explains it; returns what each leaves unexplained."""
        own = self._bench.pixels(row, {})["pixel_values"]
        left: dict[str, float] = {}
        for hypothesis in hypotheses:
            if self.left <= 0 or self._evidence.found[name][row].known:
                break
            if torch.equal(self._bench.pixels(row, hypothesis)["pixel_values"], own):
                continue
            self.left -= 1
            left[causes_key(hypothesis)] = self._try(name, row, {**hypothesis, "compute": self._bench.compute[0]})
            bar.update()
        return left

    def _try(self, name: str, row: int, picture: Hypothesis) -> float:
        rows, others = self._evidence.arrays[name], self._search.others
        trial = rows.best(
            picture, row, row, [rows.own_layer()] if name not in FEATURES or name == "projected" else None
        )
        if trial is not None and self._evidence.note(name, row, row, trial):
            self._search.settle(name, trial.hypothesis)
        elif others.place_of(name, row, picture) is not None and others.explain(name, row, picture):
            self._search.settle(name, self._evidence.found[name][row].trial.hypothesis)
        return math.inf if trial is None else trial.residual


def _promising(hypotheses: Iterable[Hypothesis], left: Mapping[str, float]) -> Sequence[Hypothesis]:
    """Sort sets of changes by what their members leave unexplained alone; members without effect are left out.

    Small differences tell nothing: there the order of likelihood stays.
    """

    def sum_of_members(hypothesis: Hypothesis) -> float:
        return round(sum(left.get(causes_key({axis: choice}), math.inf) for axis, choice in hypothesis.items()), 1)

    return sorted((one for one in hypotheses if sum_of_members(one) < math.inf), key=sum_of_members)
