"""Make one row of each array from a forward of the tower, under a hypothesis, before order, scale and rounding."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stage1_extract.diagnose.bench import Bench
from stage1_extract.diagnose.fit import Base, Trial, compare, finish, fit, through
from stage1_extract.diagnose.suspects import Cause, Choice, Hypothesis, layer_axis, order_axis, rounding_axis, row_axis
from stage1_extract.encoding.encode import EveryLayer
from store.projectors import project_image

FEATURES = ("raw", "projected", "cls_hidden", "cls_attention")
"""Arrays for which one forward shows what each layer would have given."""
STORED_PROJECTOR = Cause("projector", "another projector, the one in the store")


class ArrayRows:
    """The rows of one array of a store: makes them under hypotheses, and finds the hypothesis that makes a row best."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name
        half = bench.encoder.half
        self.row_choices = row_axis(half.selection, half.facts)
        patchwise = name in ("raw", "projected", "cls_attention")
        self.orders = order_axis(half.facts.grid) if patchwise else [Choice(None)]
        self.trips = rounding_axis(bench.store.arrays[name].dtype, name)
        through_raw = name == "projected" and "raw" not in bench.store.arrays
        self.raw_trips = rounding_axis(bench.store.arrays[name].dtype, "raw") if through_raw else [Choice(None)]

    def stored(self, row: int) -> Float[Tensor, "token width"]:
        """Return a stored row as tokens: attention as one token per patch, an array without patches as one token."""
        return self._as_tokens(self.bench.stored(self.name, row))

    def as_stored(self, tokens: Float[Tensor, "token width"]) -> Float[Tensor, "..."]:
        """Return tokens in the shape of the array, so that they can be compared with bytes of the store."""
        return tokens.T.contiguous() if self.name == "cls_attention" else tokens

    def attempt(self, hypothesis: Hypothesis, image: int, row: int) -> Trial:
        """Compare a stored row with what a hypothesis makes of the image of the row `image`."""
        hypothesis = self._of_this_array(hypothesis)
        base = self.base(hypothesis, image)
        return compare(hypothesis, finish(base, hypothesis, self.bench.dtype(self.name)), self.stored(row))

    def base(self, hypothesis: Hypothesis, image: int) -> Base:
        """Return what a hypothesis makes of an image, before order, scale and round trip."""
        layers = [hypothesis["layer"]] if "layer" in hypothesis else None
        projectors = [hypothesis["projector"]] if "projector" in hypothesis else [Choice("own")]
        rows = [hypothesis["rows"]] if "rows" in hypothesis else self.row_choices[:1]
        trips = [hypothesis["raw_rounding"]] if "raw_rounding" in hypothesis else [Choice(None)]
        return next(self._bases(hypothesis, image, layers or [self.own_layer()], rows, projectors, trips))

    def best(
        self, hypothesis: Hypothesis, image: int, row: int, layers: Sequence[Choice] | None = None
    ) -> Trial | None:
        """Fit a stored row to an image under the picture and dtype of a hypothesis.

        Args:
            hypothesis: Names picture and dtype; its choices on the axes in FITTED are ignored.
            image: Row of the image that the stored row may show.
            row: The stored row.
            layers: Layers to look at; by default every layer that the array may come from.

        Returns:
            The best trial; None where nothing has the shape of the stored row.

        """
        kept = {axis: choice for axis, choice in hypothesis.items() if axis not in FITTED}
        stored = self.stored(row)
        listed, trips = (self.layers(kept, image), self.raw_trips) if layers is None else (layers, [Choice(None)])
        projectors = [Choice("own"), *([Choice("stored", STORED_PROJECTOR)] if self._other_projector(kept) else [])]
        tokens = self.bench.encoder.half.facts.patches + int(self.bench.encoder.half.facts.has_cls)
        rows = [choice for choice in self.row_choices if len(range(tokens)[choice.value]) == len(stored)]
        bases = [*self._bases(kept, image, listed, rows, projectors, trips)]
        return fit(bases, stored, self.orders, self.trips)

    def layers(self, hypothesis: Hypothesis, image: int) -> list[Choice]:
        """List the layers that the array may come from, the right one first."""
        if self.name not in FEATURES:
            return [self.own_layer()]
        choices = layer_axis(self.bench.encoder.half.selection, self.bench.seen(image, hypothesis))
        if self.name == "cls_attention":
            return [choice for choice in choices if choice.value is not None and choice.value[-1] > 0]
        return choices

    def own_layer(self) -> Choice:
        """Return the layers that the checkpoint asks for."""
        return Choice(self.bench.encoder.half.selection.layers)

    def _other_projector(self, hypothesis: Hypothesis) -> bool:
        return self.name == "projected" and "stored" in self.bench.projectors(hypothesis)

    def _of_this_array(self, hypothesis: Hypothesis) -> Hypothesis:
        """Return a hypothesis without the axes that cannot concern this array."""
        without = set[str]()
        if self.name not in ("raw", "projected"):
            without |= {"rows"}
        if self.name != "projected":
            without |= {"projector", "raw_rounding"}
        if len(self.orders) == 1:
            without |= {"order"}
        return {axis: choice for axis, choice in hypothesis.items() if axis not in without}

    def _bases(
        self, hypothesis: Hypothesis, image: int, layers: Sequence[Choice], rows: Sequence[Choice],
        projectors: Sequence[Choice], trips: Sequence[Choice],
    ) -> Iterator[Base]:  # fmt: skip
        """Yield a base for every combination of layer, choice of rows, projector and round trip of `raw`."""
        for layer in layers:
            fixed = {**hypothesis, **({} if layer.cause is None else {"layer": layer})}
            if self.name not in FEATURES:
                made = self.bench.side_array(self.name, image, fixed)
                yield Base(fixed, self._as_tokens(made), has_order=False)
                continue
            seen = self.bench.seen(image, hypothesis)
            if self.name == "cls_attention":
                yield Base(fixed, self._as_tokens(seen.cls_attention[layer.value[-1] - 1][0]))
            elif self.name == "cls_hidden":
                yield Base(fixed, torch.cat([state[:, 0] for state in _states(seen, layer)], -1), has_order=False)
            else:
                yield from self._patches(fixed, _states(seen, layer), rows, projectors, trips)

    def _patches(
        self, fixed: Hypothesis, states: Sequence[Tensor], rows: Sequence[Choice], projectors: Sequence[Choice],
        trips: Sequence[Choice],
    ) -> Iterator[Base]:  # fmt: skip
        """Yield a base of `raw` or `projected` for every combination of rows, projector and round trip of `raw`."""
        facts = self.bench.encoder.half.facts
        for choice in rows:
            raw = torch.cat([state[:, choice.value] for state in states], -1).contiguous()
            choices: dict[str, Any] = {**fixed, **({} if choice.cause is None else {"rows": choice})}
            keeps_cls = facts.has_cls and choice.value.start == 0
            leading, has_order = int(keeps_cls), not (keeps_cls and choice.value.stop == -1)
            if self.name == "raw":
                yield Base(choices, raw[0], leading, has_order)
                continue
            for projector, trip in product(projectors, trips):
                module = self.bench.projectors(fixed)[projector.value]
                extra = {"projector": projector, "raw_rounding": trip}
                extra = {axis: added for axis, added in extra.items() if added.cause is not None}
                yield Base(choices | extra, project_image(module, through(raw, trip.value))[0], leading, has_order)

    def _as_tokens(self, row: Float[Tensor, "..."]) -> Float[Tensor, "token width"]:
        if self.name in ("raw", "projected"):
            return row
        return row.T.contiguous() if self.name == "cls_attention" else row.reshape(1, -1)


FITTED = ("layer", "rows", "order", "scale", "rounding", "projector", "raw_rounding")
"""Axes of a hypothesis on which `ArrayRows.best` chooses."""


def _states(seen: EveryLayer, layer: Choice) -> list[Tensor]:
    return [seen.last_hidden_state] if layer.value is None else [seen.hidden_states[index] for index in layer.value]
