"""Looks for the smallest set of causes that makes the sampled rows of an array, cheap suspicions first.

Every row is explained: by the right hypothesis, by one that explains other rows or another array, by what the forwards
that are there already show, and last by other pictures, each of which costs a forward of the tower.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from stage1_extract.diagnose.bases import FEATURES, STORED_PROJECTOR, Rows
from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.checks import Checked, follows
from stage1_extract.diagnose.fit import NEAR, Trial, compare, finish
from stage1_extract.errors import BadImage
from stage1_extract.suspects import LIKELY_FIRST, OTHER_IMAGES, Cause, Choice, Hypothesis, pixel_axes, together
from store.tensors import to_storage

MOST_SOURCES = 8
"""Images whose features are looked for in a row that is not theirs."""
PEAK = 16
"""How many times the tolerated relative difference a single value may differ."""
EXEMPLARS = 2
"""Unexplained rows on which other pictures are tried."""
ONE_ROUNDING = 1 / 3
"""Relative root mean square of one rounding, in eps of the dtype, and some more."""


@dataclass(frozen=True)
class Finding:
    """What explains one row of one array."""

    row: int
    trial: Trial
    """The best there is."""
    causes: tuple[Cause, ...] = ()
    """What is wrong, if it is known; nothing for a row that is as it should be."""
    known: bool = True
    image: int | None = None
    """The row whose image it shows, where that is another one."""
    note: str = ""
    """What else is known about a row that nothing explains."""

    @property
    def wrong(self) -> bool:
        """Whether the row is not what it should be."""
        return bool(self.causes) or not self.known


@dataclass(frozen=True)
class Gap:
    """How far a stored row is from the model's own, where their shapes overlap."""

    max_abs: float
    mean_abs: float
    allclose: bool

    @classmethod
    def between(cls, own: Tensor, stored: Tensor) -> "Gap":
        """Measure it in float64."""
        overlap = tuple(slice(min(sizes)) for sizes in zip(own.shape, stored.shape, strict=True))
        ours, theirs = own[overlap].double(), stored[overlap].double()
        apart = (ours - theirs).abs()
        close = own.shape == stored.shape and torch.allclose(ours, theirs, atol=1e-5)
        return cls(apart.max().item(), apart.mean().item(), close)


class Search:
    """The search over all arrays of a store; what explains one array is tried on the next."""

    def __init__(
        self, bench: Bench, rows: Sequence[int], checked: Checked, tries: int, say: Callable[[str], None]
    ) -> None:
        """`tries` is the number of forwards that other pictures may cost, `say` takes a line of progress."""
        self.bench, self.rows, self.checked, self.say = bench, list(rows), checked, say
        self.arrays = {name: Rows(bench, name) for name in _in_order(bench.store.arrays) if name in bench.expected}
        self.found: dict[str, dict[int, Finding]] = {name: {} for name in self.arrays}
        self.gaps: dict[str, list[Gap]] = {}
        self._left = tries
        self._pictures = pixel_axes(bench.encoder.image_processor.stock)
        self._explaining: dict[str, Hypothesis] = {}
        self._allowed: dict[tuple[str, int], float] = {}

    def first_look(self) -> None:
        """Encode every sampled image once, as the checkpoint does, and compare all arrays with it."""
        right = {"compute": self.bench.compute[0]}
        for row in tqdm(self.rows, "encode again", unit="image", disable=None):
            for name, rows in self.arrays.items():
                made, stored = finish(rows.base(right, row), right, self.bench.dtype(name)), rows.stored(row)
                trial = compare(right, made, stored)
                known = self._matches(name, row, trial)
                self.found[name][row] = Finding(row, trial, trial.causes if known else (), known)
                self.gaps.setdefault(name, []).append(Gap.between(made, stored))

    def explain(self, name: str) -> None:
        """Explain every wrong row of an array, as far as that is possible."""
        for row, cause in self.checked.blank.get(name, {}).items():
            if row in self.found[name] and self.found[name][row].wrong:
                self.found[name][row] = replace(self.found[name][row], causes=(cause,), known=True)
        if not self._unexplained(name):
            return
        wrong, seconds = len(self._unexplained(name)), self.bench.seconds
        self.say(f"{name}: {wrong} of {len(self.rows)} images are not what the checkpoint makes; looking for the cause")
        self._follow_raw(name)
        for hypothesis in [*self._explaining.values()]:
            self._settle(name, {axis: choice for axis, choice in hypothesis.items() if axis != "rounding"})
        for row in self._unexplained(name):
            self._look_closely(name, row)
        if exemplars := [row for row in self._unexplained(name) if not self.found[name][row].note]:
            minutes = self._left * seconds / 60
            self.say(
                f"{name}: trying other pictures, at most {self._left} forwards of the tower, {minutes:.1f} minutes"
            )
            self._try_pictures(name, exemplars[:EXEMPLARS])
        self._simplify(name)

    def _unexplained(self, name: str) -> list[int]:
        return [row for row, finding in self.found[name].items() if not finding.known]

    def _matches(self, name: str, row: int, trial: Trial | None) -> bool:
        """Return whether a trial explains a row: bit for bit, or up to rounding where the bits cannot be expected.

        They are expected of the right features in the environment that the store names. A cause may have been brought
        about by other code, whose last bits are not known: there one rounding is tolerated.
        """
        if trial is None or trial.equal:
            return trial is not None
        if self.bench.made_elsewhere(name):
            allowed = self._rounding(name, row)
        elif trial.causes:
            allowed = max(1e-5, ONE_ROUNDING * torch.finfo(self.bench.dtype(name)).eps)
        else:
            return False
        return trial.residual <= allowed and trial.peak <= PEAK * allowed

    def _rounding(self, name: str, row: int) -> float:
        """Return what another device may differ by: in 16 bit, at most twice what computing in float32 differs by."""
        allowed = self.bench.rounding(name)
        if self.bench.compute[0].value == "float32":
            return allowed
        if (name, row) not in self._allowed:
            rows, dtype = self.arrays[name], self.bench.dtype(name)
            own, wide = ({"compute": choice} for choice in (self.bench.compute[0], Choice("float32")))
            made = [finish(rows.base(one, row), one, dtype) for one in (own, wide)]
            self._allowed[name, row] = 2 * compare(own, *made).residual
        return min(allowed, self._allowed[name, row])

    def _follow_raw(self, name: str) -> None:
        """Give rows of `projected` that are the projection of the stored `raw` the causes of `raw`."""
        if name != "projected" or not self.found.get("raw"):
            return
        for row in self._unexplained(name):
            raw = self.found["raw"][row]
            hypothesis = {"compute": self.bench.compute[0]}
            for kind, projector in self.bench.projectors(hypothesis).items():
                if follows(self.bench, projector, row):
                    causes = raw.causes + ((STORED_PROJECTOR,) if kind == "stored" else ())
                    trial = replace(self.found[name][row].trial, equal=raw.trial.equal, residual=raw.trial.residual)
                    note = "it is the projection of `raw`" if not raw.known else ""
                    self.found[name][row] = Finding(row, trial, causes, raw.known, raw.image, note)
                    break

    def _settle(self, name: str, hypothesis: Hypothesis) -> None:
        """Explain by a hypothesis, or by its picture and dtype with another fit, what it can explain."""
        rows = self.arrays[name]
        picture = {axis: choice for axis, choice in hypothesis.items() if axis in (*LIKELY_FIRST, "compute")}
        for row in self._unexplained(name):
            for image in (row, *self._sources(name, row)):
                trial = rows.attempt(hypothesis, image, row)
                if not self._matches(name, row, trial) and picture:
                    layers = None if name in FEATURES and name != "projected" else [self._layer_of(hypothesis, name)]
                    trial = rows.best(picture, image, row, layers)
                if trial is not None and self._note(name, row, image, trial):
                    break

    def _layer_of(self, hypothesis: Hypothesis, name: str) -> Choice:
        return hypothesis["layer"] if "layer" in hypothesis else self.arrays[name].own_layer()

    def _note(self, name: str, row: int, image: int, trial: Trial) -> bool:
        """Remember a trial: as what explains the row, or as the best so far."""
        if self._matches(name, row, trial):
            causes = trial.causes + (() if image == row else (OTHER_IMAGES,))
            self.found[name][row] = Finding(row, trial, causes, image=None if image == row else image)
            if trial.causes:
                self._explaining.setdefault(_key(trial.hypothesis), trial.hypothesis)
            return True
        if image == row and trial.rank() < self.found[name][row].trial.rank():
            self.found[name][row] = replace(self.found[name][row], trial=trial)
        return False

    def _sources(self, name: str, row: int) -> list[int]:
        """List rows whose images a row may show instead of its own: those that hold the same, then all sampled ones."""
        stored = self.checked.where(name, self.bench.store.gather(name, [row])[0])
        listed = [*stored, *self.rows]
        return [one for one in dict.fromkeys(listed) if one != row and self._can_be_read(one)][:MOST_SOURCES]

    def _can_be_read(self, row: int) -> bool:
        try:
            self.bench.image(row)
        except BadImage:
            return False
        return True

    def _look_closely(self, name: str, row: int) -> None:
        """Try all that costs no other picture: layers, orders, factors, round trips, other images, another dtype."""
        rows, right = self.arrays[name], {"compute": self.bench.compute[0]}
        trial = rows.best(right, row, row)
        if trial is not None and self._note(name, row, row, trial):
            self._settle(name, trial.hypothesis)
            return
        if self._is_damaged(name, row) or self._shows_another(name, row, right):
            return
        self._try_dtypes(name, row, right)

    def _is_damaged(self, name: str, row: int) -> bool:
        """Note rows of which most tokens are right: no suspicion changes only a few."""
        rows = self.arrays[name]
        base = rows.base({"compute": self.bench.compute[0]}, row)
        made, stored = finish(base, {}, self.bench.dtype(name)), rows.stored(row)
        if made.shape != stored.shape:
            return False
        flat = (made, stored) if len(made) > 1 else (made.T, stored.T)
        wrong = int((flat[0] != flat[1]).any(1).sum())
        if wrong > len(flat[0]) / 2:
            return False
        what = "patches" if len(made) > 1 else "values"
        note = f"{wrong} of {len(flat[0])} {what} differ, the others are right bit for bit"
        self.found[name][row] = replace(self.found[name][row], note=note)
        return True

    def _shows_another(self, name: str, row: int, picture: Hypothesis) -> bool:
        """Explain a row by the features of another image, or by its own features in the row of another."""
        rows = self.arrays[name]
        place = self._place_of(name, row, picture)
        moved = [] if place is None else [place, 2 * place - row, 2 * row - place]
        read = [one for one in moved if one in self._readable_rows() and one != row and self._can_be_read(one)]
        for image in dict.fromkeys([*read, *self._sources(name, row)]):
            trial = rows.best(picture, image, row, None if name != "projected" else [rows.own_layer()])
            if trial is not None and self._note(name, row, image, trial):
                return True
        if place is not None:
            self.found[name][row] = Finding(row, self.found[name][row].trial, (OTHER_IMAGES,))
        return place is not None

    def _readable_rows(self) -> set[int]:
        store = self.bench.store
        return {row for row in store.rows_with(store.arrays) if store.ids.names(row)}

    def _place_of(self, name: str, row: int, picture: Hypothesis) -> int | None:
        """Return a row that holds what this row's image should have, from the layer that is asked for or another."""
        rows = self.arrays[name]
        if name not in ("raw", "projected", "cls_hidden"):
            return None
        layers = [rows.own_layer()] if name == "projected" else rows.layers(picture, row)
        for layer in layers:
            hypothesis = {**picture, **({} if layer.cause is None else {"layer": layer})}
            made = finish(rows.base(hypothesis, row), hypothesis, self.bench.dtype(name))
            held = self.checked.where(name, to_storage(made))
            if held and row not in held:
                return held[0]
        return None

    def _try_dtypes(self, name: str, row: int, picture: Hypothesis) -> None:
        """Compute in other dtypes, where what is left is no more than that could make."""
        best = self.found[name][row].trial
        if best.residual > NEAR:
            return
        for choice in self.bench.compute[1:]:
            layer = self._layer_of(best.hypothesis, name)
            trial = self.arrays[name].best({**picture, "compute": choice}, row, row, [layer])
            if trial is not None and self._note(name, row, row, trial):
                self._settle(name, trial.hypothesis)
                return

    def _try_pictures(self, name: str, exemplars: Sequence[int]) -> None:
        """Try one other thing about the picture on each exemplar, then two and three on the first, the nearest first."""
        bar = tqdm(desc=f"diagnose {name}", total=self._left, unit="forward", disable=None)
        scores: dict[int, dict[str, float]] = {}
        for row in exemplars:
            scores[row] = self._try_each(name, row, together(self._pictures, 1), bar)
        for count, row in ((count, row) for row in exemplars for count in (2, 3)):
            if not self.found[name][row].known:
                score = scores[row]
                pairs = [
                    one for one in together(self._pictures, count) if all(_key({a: c}) in score for a, c in one.items())
                ]
                self._try_each(name, row, sorted(pairs, key=lambda one: _expected(one, score)), bar)
        for row in exemplars:
            if not self.found[name][row].known:
                best = self.found[name][row].trial.hypothesis
                self._try_dtypes(name, row, {axis: best[axis] for axis in LIKELY_FIRST if axis in best})
        bar.close()

    def _try_each(self, name: str, row: int, hypotheses: Iterable[Hypothesis], bar: tqdm) -> dict[str, float]:
        """Try other pictures on one row until one explains it; returns what each leaves unexplained."""
        rows, right = self.arrays[name], self.bench.compute[0]
        own = self.bench.pixels(row, {})["pixel_values"]
        scores: dict[str, float] = {}
        for hypothesis in hypotheses:
            if self._left <= 0 or self.found[name][row].known:
                break
            if torch.equal(self.bench.pixels(row, hypothesis)["pixel_values"], own):
                continue
            self._left -= 1
            bar.update()
            picture = {**hypothesis, "compute": right}
            layers = [rows.own_layer()] if name == "projected" or name not in FEATURES else None
            trial = rows.best(picture, row, row, layers)
            scores[_key(hypothesis)] = math.inf if trial is None else trial.residual
            if trial is not None and self._note(name, row, row, trial):
                self._settle(name, trial.hypothesis)
            elif self._place_of(name, row, picture) is not None and self._shows_another(name, row, picture):
                self._settle(name, self.found[name][row].trial.hypothesis)
        return scores

    def _simplify(self, name: str) -> None:
        """Let one hypothesis explain all rows, where one of those that were found does: on some images others look equal."""
        wrong = [
            finding for finding in self.found[name].values() if finding.known and finding.causes and finding.trial.equal
        ]
        hypotheses = {_key(one.trial.hypothesis): one.trial.hypothesis for one in wrong if one.trial.causes}
        if len(hypotheses) < 2:
            return
        rows = self.arrays[name]
        for hypothesis in hypotheses.values():
            trials = [rows.attempt(hypothesis, one.row if one.image is None else one.image, one.row) for one in wrong]
            if all(trial.equal for trial in trials):
                for one, trial in zip(wrong, trials, strict=True):
                    moved = () if one.image is None else (OTHER_IMAGES,)
                    self.found[name][one.row] = replace(one, trial=trial, causes=trial.causes + moved)
                return


def _in_order(names: Mapping[str, object]) -> Iterator[str]:
    """Yield the arrays that explain others first."""
    yield from (name for name in FEATURES if name in names)
    yield from (name for name in names if name not in FEATURES)


def _key(hypothesis: Hypothesis) -> str:
    return "; ".join(sorted(choice.cause.detail for choice in hypothesis.values() if choice.cause is not None))


def _expected(hypothesis: Hypothesis, scores: Mapping[str, float]) -> float:
    """Return how promising several changes are together, from what each leaves alone."""
    return sum(scores[_key({axis: choice})] for axis, choice in hypothesis.items())
