"""Looks for the smallest set of causes that makes the sampled rows of an array, by what costs no other picture.

A row is explained by what explains another array or another row, by the layers, orders, factors and round trips of the
forward that is there, by another image's features, or by computing in another dtype.
"""

from collections.abc import Callable
from dataclasses import replace

from stage1_extract.diagnose.bases import FEATURES, STORED_PROJECTOR
from stage1_extract.diagnose.checks import Checked, follows
from stage1_extract.diagnose.evidence import Evidence, Finding
from stage1_extract.diagnose.fit import NEAR, finish
from stage1_extract.diagnose.other_images import OtherImages
from stage1_extract.diagnose.suspect_pictures import LIKELY_FIRST
from stage1_extract.diagnose.suspects import OTHER_IMAGES, Choice, Hypothesis, causes_key


class Search:
    """The search over all arrays of a store; what explains one array is tried on the next."""

    def __init__(self, evidence: Evidence, checked: Checked, say: Callable[[str], None]) -> None:
        """`say` takes a line of progress."""
        self.evidence, self.others = evidence, OtherImages(evidence, checked)
        self._checked, self._bench, self._say = checked, evidence.bench, say

    def explain(self, name: str) -> None:
        """Explain the wrong rows of an array, as far as that costs no other picture."""
        found, wrong = self.evidence.found[name], self.evidence.unexplained(name)
        for row in wrong:
            cause = self._checked.blank.get(name, {}).get(row)
            if cause is not None:
                found[row] = replace(found[row], causes=(cause,), known=True)
        if wrong:
            self._say(f"{name}: {len(wrong)} of {len(found)} images are not what the checkpoint makes")
        self._follow_raw(name)
        for hypothesis in [*self.evidence.explaining.values()]:
            self.settle(name, {axis: choice for axis, choice in hypothesis.items() if axis != "rounding"})
        for row in self.evidence.unexplained(name):
            if not found[row].known:  # another row's hypothesis may have explained it meanwhile
                self._look_closely(name, row)

    def settle(self, name: str, hypothesis: Hypothesis) -> None:
        """Explain by a hypothesis, or by its picture and dtype with another fit, what it can explain."""
        for row in self.evidence.unexplained(name):
            self._attempt(name, hypothesis, row, row)
        for row in self.evidence.unexplained(name):
            for image in self.others.likely(name, row):
                if self._attempt(name, hypothesis, image, row):
                    break

    def _attempt(self, name: str, hypothesis: Hypothesis, image: int, row: int) -> bool:
        rows = self.evidence.arrays[name]
        if self.evidence.note(name, row, image, rows.attempt(hypothesis, image, row)):
            return True
        picture = {axis: choice for axis, choice in hypothesis.items() if axis in (*LIKELY_FIRST, "compute")}
        every_layer = name in FEATURES and name != "projected"
        trial = rows.best(picture, image, row, None if every_layer else [self._layer_of(hypothesis, name)])
        return trial is not None and self.evidence.note(name, row, image, trial)

    def try_dtypes(self, name: str, row: int, picture: Hypothesis) -> None:
        """Compute in other dtypes, where what is left is no more than that could make."""
        best = self.evidence.found[name][row].trial
        for choice in self._bench.compute[1:] if best.residual <= NEAR else ():
            layer = self._layer_of(best.hypothesis, name)
            trial = self.evidence.arrays[name].best({**picture, "compute": choice}, row, row, [layer])
            if trial is not None and self.evidence.note(name, row, row, trial):
                self.settle(name, trial.hypothesis)
                return

    def simplify(self, name: str) -> None:
        """Let one hypothesis explain all rows, where one of those that were found does: on some images others look equal."""
        found = self.evidence.found[name]
        wrong = [one for one in found.values() if one.known and one.causes and one.trial.equal]
        rows, hypotheses = self.evidence.arrays[name], {causes_key(one.trial.hypothesis): one.trial for one in wrong}
        for candidate in hypotheses.values() if len(hypotheses) > 1 else ():
            images = [one.row if one.image is None else one.image for one in wrong]
            trials = [
                rows.attempt(candidate.hypothesis, image, one.row) for image, one in zip(images, wrong, strict=True)
            ]
            if all(trial.equal for trial in trials):
                for one, trial in zip(wrong, trials, strict=True):
                    moved = () if one.image is None else (OTHER_IMAGES,)
                    found[one.row] = replace(one, trial=trial, causes=candidate.causes + moved)
                return

    def _follow_raw(self, name: str) -> None:
        """Give rows of `projected` that are the projection of the stored `raw` the causes of `raw`."""
        if name != "projected" or "raw" not in self.evidence.found:
            return
        for row in self.evidence.unexplained(name):
            raw, trial = self.evidence.found["raw"][row], self.evidence.found[name][row].trial
            for kind, projector in self._bench.projectors({"compute": self._bench.compute[0]}).items():
                if follows(self._bench, projector, row):
                    causes = raw.causes + ((STORED_PROJECTOR,) if kind == "stored" else ())
                    trial = replace(trial, equal=raw.trial.equal, residual=raw.trial.residual)
                    note = "" if raw.known else "it is the projection of `raw`"
                    self.evidence.found[name][row] = Finding(row, trial, causes, raw.known, raw.image, note)
                    break

    def _layer_of(self, hypothesis: Hypothesis, name: str) -> Choice:
        return hypothesis["layer"] if "layer" in hypothesis else self.evidence.arrays[name].own_layer()

    def _look_closely(self, name: str, row: int) -> None:
        """Try layers, orders, factors and round trips; then other images; then other dtypes."""
        right = {"compute": self._bench.compute[0]}
        trial = self.evidence.arrays[name].best(right, row, row)
        if trial is not None and self.evidence.note(name, row, row, trial):
            self.settle(name, trial.hypothesis)
        elif not self._is_damaged(name, row) and not self.others.explain(name, row, right):
            self.try_dtypes(name, row, right)

    def _is_damaged(self, name: str, row: int) -> bool:
        """Note rows of which most tokens are right: no suspicion changes only a few."""
        rows, right = self.evidence.arrays[name], {"compute": self._bench.compute[0]}
        made, stored = finish(rows.base(right, row), right, self._bench.dtype(name)), rows.stored(row)
        if made.shape != stored.shape:
            return False
        by_token = len(made) > 1
        differs = (made != stored).any(1) if by_token else (made != stored).any(0)
        wrong = int(differs.sum())
        if wrong > len(differs) / 2:
            return False
        what = "patches" if by_token else "values"
        note = f"{wrong} of {len(differs)} {what} differ, the others are right bit for bit"
        self.evidence.found[name][row] = replace(self.evidence.found[name][row], note=note)
        return True
