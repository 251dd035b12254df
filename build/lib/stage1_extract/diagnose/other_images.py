"""Rows that hold the features of other images: whose, found by equal bytes, or by comparing with other images' features."""

from stage1_extract.diagnose.bases import FEATURES
from stage1_extract.diagnose.checks import Checked
from stage1_extract.diagnose.evidence import Evidence, Finding
from stage1_extract.diagnose.fit import finish
from stage1_extract.diagnose.suspects import OTHER_IMAGES, Hypothesis
from stage1_extract.errors import BadImage
from store.layout.tensors import to_storage

MOST = 8
"""Images whose features are looked for in a row that is not theirs."""


class OtherImages:
    """The search for the image that a row shows instead of its own."""

    def __init__(self, evidence: Evidence, checked: Checked) -> None:
        self._evidence, self._checked, self._bench = evidence, checked, evidence.bench
        store = self._bench.store
        self._rows = {row for row in store.rows_with(store.arrays) if store.ids.names(row)}

    def likely(self, name: str, row: int) -> list[int]:
        """List rows whose images a row may show: those that hold the same bytes, then all that are wrong too."""
        same = self._checked.where(name, self._bench.store.gather(name, [row])[0])
        wrong = [other for other, finding in self._evidence.found[name].items() if finding.wrong]
        return self._readable(row, [*same, *wrong])

    def explain(self, name: str, row: int, picture: Hypothesis) -> bool:
        """Explain a row by the features of another image, or by its own features in the row of another."""
        rows, place = self._evidence.arrays[name], self.place_of(name, row, picture)
        # Where the features of this image moved by so many rows, this row may hold those that moved as far.
        moved = [] if place is None else [place, 2 * row - place]
        elsewhere = [found[row].image for found in self._evidence.found.values()]
        seen = [image for image in elsewhere if image is not None]
        for image in self._readable(row, [*seen, *moved, *self.likely(name, row)]):
            trial = rows.best(picture, image, row, None if name != "projected" else [rows.own_layer()])
            if trial is not None and self._evidence.note(name, row, image, trial):
                return True
        if place is not None:
            trial = self._evidence.found[name][row].trial
            self._evidence.found[name][row] = Finding(row, trial, (OTHER_IMAGES,))
        return place is not None

    def place_of(self, name: str, row: int, picture: Hypothesis) -> int | None:
        """Return a row that holds what this row's image should have, from the layer that is asked for or another."""
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
        distinct = (other for other in dict.fromkeys(others) if other != row and other in self._rows)
        return [other for other in distinct if self._can_be_read(other)][:MOST]

    def _can_be_read(self, row: int) -> bool:
        try:
            self._bench.image(row)
        except BadImage:
            return False
        return True
