"""Search for the smallest set of causes that makes the sampled rows of an array, without changing their pictures.

A row is explained by a hypothesis that explains another array or row, by another layer, order, factor or round trip of the
forward that was made already, by another image's features, or by computing in another dtype.
"""

from collections.abc import Callable
from dataclasses import replace

from stage1_extract.diagnose.bases import FEATURES, STORED_PROJECTOR
from stage1_extract.diagnose.checks import Checked, follows
from stage1_extract.diagnose.evidence import Evidence, RowFinding
from stage1_extract.diagnose.fit import NEAR, finish
from stage1_extract.diagnose.other_images import OtherImages
from stage1_extract.diagnose.suspect_pictures import LIKELY_FIRST
from stage1_extract.diagnose.suspects import OTHER_IMAGES, Choice, Hypothesis, causes_key


class Search:
    """The search over all arrays of a store; a hypothesis that explains one array is tried on the next."""

    def __init__(self, evidence: Evidence, checked: Checked, say: Callable[[str], None]) -> None:
        """Prepare the search; `say` is called with lines of progress."""
        self.evidence, self.others = evidence, OtherImages(evidence, checked)
        self._checked, self._bench, self._say = checked, evidence.bench, say

    def explain(self, name: str) -> None:
        """Explain the wrong rows of an array, as far as that is possible without changing pictures."""
        findings, wrong = self.evidence.findings[name], self.evidence.unexplained(name)
        for row in wrong:
            cause = self._checked.blank.get(name, {}).get(row)
            if cause is not None:
                findings[row] = replace(findings[row], causes=(cause,), known=True)
        if wrong:
            self._say(f"{name}: {len(wrong)} of {len(findings)} images are not what the checkpoint makes")
        self._follow_raw(name)
        for hypothesis in [*self.evidence.explaining.values()]:
            self.settle(name, {axis: choice for axis, choice in hypothesis.items() if axis != "rounding"})
        for row in self.evidence.unexplained(name):
            if not findings[row].known:  # a hypothesis of another row may have explained this row meanwhile
                self._look_closely(name, row)

    def settle(self, name: str, hypothesis: Hypothesis) -> None:
        """Explain unexplained rows by a hypothesis, or by its picture and dtype with another fit."""
        for row in self.evidence.unexplained(name):
            self._attempt(name, hypothesis, row, row)
        for row in self.evidence.unexplained(name):
            for image in self.others.likely(name, row):
                if self._attempt(name, hypothesis, image, row):
                    break

    def _attempt(self, name: str, hypothesis: Hypothesis, image: int, row: int) -> bool:
        """Try a hypothesis on a row, then its picture and dtype with another fit; return whether the row is explained."""
        rows = self.evidence.arrays[name]
        if self.evidence.note(name, row, image, rows.attempt(hypothesis, image, row)):
            return True
        picture = {axis: choice for axis, choice in hypothesis.items() if axis in (*LIKELY_FIRST, "compute")}
        every_layer = name in FEATURES and name != "projected"
        trial = rows.best(picture, image, row, None if every_layer else [self._layer_of(hypothesis, name)])
        return trial is not None and self.evidence.note(name, row, image, trial)

    def try_dtypes(self, name: str, row: int, picture: Hypothesis) -> None:
        """Explain a row by computing in other dtypes, if its difference is small enough for that."""
        best = self.evidence.findings[name][row].trial
        for choice in self._bench.compute[1:] if best.residual <= NEAR else ():
            layer = self._layer_of(best.hypothesis, name)
            trial = self.evidence.arrays[name].best({**picture, "compute": choice}, row, row, [layer])
            if trial is not None and self.evidence.note(name, row, row, trial):
                self.settle(name, trial.hypothesis)
                return

    def simplify(self, name: str) -> None:
        """Replace several hypotheses by one of them, if that one explains all rows of an array.

        On some images, different causes have the same effect.
        """
        findings, rows = self.evidence.findings[name], self.evidence.arrays[name]
        wrong = [finding for finding in findings.values() if finding.known and finding.causes and finding.trial.equal]
        candidates = {causes_key(finding.trial.hypothesis): finding.trial for finding in wrong}
        images = [finding.row if finding.image is None else finding.image for finding in wrong]
        for candidate in candidates.values() if len(candidates) > 1 else ():
            trials = [
                rows.attempt(candidate.hypothesis, image, finding.row)
                for image, finding in zip(images, wrong, strict=True)
            ]
            if all(trial.equal for trial in trials):
                for finding, trial in zip(wrong, trials, strict=True):
                    moved = () if finding.image is None else (OTHER_IMAGES,)
                    findings[finding.row] = replace(finding, trial=trial, causes=candidate.causes + moved)
                return

    def _follow_raw(self, name: str) -> None:
        """Give a row of `projected` the causes of `raw` where it is the projection of the stored `raw`."""
        if name != "projected" or "raw" not in self.evidence.findings:
            return
        for row in self.evidence.unexplained(name):
            raw, trial = self.evidence.findings["raw"][row], self.evidence.findings[name][row].trial
            for kind, projector in self._bench.projectors({"compute": self._bench.compute[0]}).items():
                if follows(self._bench, projector, row):
                    causes = raw.causes + ((STORED_PROJECTOR,) if kind == "stored" else ())
                    trial = replace(trial, equal=raw.trial.equal, residual=raw.trial.residual)
                    note = "" if raw.known else "it is the projection of `raw`"
                    self.evidence.findings[name][row] = RowFinding(row, trial, causes, raw.known, raw.image, note)
                    break

    def _layer_of(self, hypothesis: Hypothesis, name: str) -> Choice:
        return hypothesis["layer"] if "layer" in hypothesis else self.evidence.arrays[name].own_layer()

    def _look_closely(self, name: str, row: int) -> None:
        """Try layers, orders, factors and round trips on a row; then other images; then other dtypes."""
        right = {"compute": self._bench.compute[0]}
        trial = self.evidence.arrays[name].best(right, row, row)
        if trial is not None and self.evidence.note(name, row, row, trial):
            self.settle(name, trial.hypothesis)
        elif not self._is_damaged(name, row) and not self.others.explain(name, row, right):
            self.try_dtypes(name, row, right)

    def _is_damaged(self, name: str, row: int) -> bool:
        """Return whether most tokens of a row are right, and note it; no hypothesis changes only a few tokens."""
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
        self.evidence.findings[name][row] = replace(self.evidence.findings[name][row], note=note)
        return True
