"""Find the image whose features a row holds: by rows of equal bytes, or by comparing with other images' features."""

from stage1_extract.diagnose.bases import FEATURES
from stage1_extract.diagnose.checks import Checked
from stage1_extract.diagnose.evidence import Evidence, RowFinding
from stage1_extract.diagnose.fit import finish
from stage1_extract.diagnose.suspects import OTHER_IMAGES, Hypothesis
from stage1_extract.errors import BadImage
from store.layout.tensors import to_storage

MOST = 8
"""Number of other images that are tried on one row."""


class OtherImages:
    """The search for the image that a row shows instead of its own."""

    def __init__(self, evidence: Evidence, checked: Checked) -> None:
        self._evidence, self._checked, self._bench = evidence, checked, evidence.bench
        store = self._bench.store
        self._rows = {row for row in store.rows_with(store.arrays) if store.ids.names(row)}

    def likely(self, name: str, row: int) -> list[int]:
        """List rows whose images a row may show: rows that hold the same bytes, then the other wrong rows."""
        same = self._checked.where(name, self._bench.store.gather(name, [row])[0])
        wrong = [other for other, finding in self._evidence.findings[name].items() if finding.wrong]
        return self._readable(row, [*same, *wrong])

    def explain(self, name: str, row: int, picture: Hypothesis) -> bool:
        """Explain a row by another image's features, or by its own image's features lying in another row.

        Returns whether the row is explained.
        """
        rows, moved_to = self._evidence.arrays[name], self.row_of_features(name, row, picture)
        # If this image's features moved by some rows, this row may hold features that moved as far.
        moved = [] if moved_to is None else [moved_to, 2 * row - moved_to]
        in_other_arrays = [findings[row].image for findings in self._evidence.findings.values()]
        seen = [image for image in in_other_arrays if image is not None]
        for image in self._readable(row, [*seen, *moved, *self.likely(name, row)]):
            trial = rows.best(picture, image, row, None if name != "projected" else [rows.own_layer()])
            if trial is not None and self._evidence.note(name, row, image, trial):
                return True
        if moved_to is not None:
            trial = self._evidence.findings[name][row].trial
            self._evidence.findings[name][row] = RowFinding(row, trial, (OTHER_IMAGES,))
        return moved_to is not None

    def row_of_features(self, name: str, row: int, picture: Hypothesis) -> int | None:
        """Return another row that holds the features of this row's image, of any layer; None where there is no such row."""
        rows = self._evidence.arrays[name]
        if name not in FEATURES:
            return None
        layers = [rows.own_layer()] if name == "projected" else rows.layers(picture, row)
        for layer in layers:
            hypothesis = {**picture, **({} if layer.cause is None else {"layer": layer})}
            made = finish(rows.base(hypothesis, row), hypothesis, self._bench.dtype(name))
            held = self._checked.where(name, to_storage(rows.as_stored(made)))
            if held and row not in held:
                return held[0]
        return None

    def _readable(self, row: int, others: list[int]) -> list[int]:
        """List the first MOST distinct rows of `others` whose images can be read."""
        distinct = (other for other in dict.fromkeys(others) if other != row and other in self._rows)
        return [other for other in distinct if self._can_be_read(other)][:MOST]

    def _can_be_read(self, row: int) -> bool:
        try:
            self._bench.image(row)
        except BadImage:
            return False
        return True
