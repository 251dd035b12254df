"""What the accuracies of a sweep are drawn against."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from stage2_prune.evaluation.report import si

Row = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis."""

    title: str
    value: Callable[[Row], float]
    tick: Callable[[float], str]
    factor: Literal[8, 10]
    """8: ticks at powers of two; 10: at 1, 2, 5, 10, …"""
    most: int
    """Ticks that there is room for."""

    def ticks(self, values: Sequence[float]) -> list[float]:
        """A few round numbers."""
        low, high = min(values), max(values)
        steps = (1, 2, 4) if self.factor == 8 else (1, 2, 5)
        every = (step * float(self.factor) ** power for power in range(-6, 20) for step in steps)
        inside = [number for number in every if low / 1.1 <= number <= high * 1.1]
        return inside[:: ceil(len(inside) / self.most)] if len(inside) > 1 else [low, high]


def _flops(row: Row) -> float:
    return row["flops"][row["flops_convention"]]


AXES: dict[str, Axis] = {
    "tokens": Axis("visual tokens per layer", lambda row: row["tokens_per_layer_mean"], lambda x: f"{x:.3g}", 8, 6),
    "flops": Axis("{convention} of the prefill", _flops, lambda x: si(float(f"{x:.2g}"), digits=3), 10, 4),
    "latency": Axis(
        "measured latency: selecting and prefill, in % of the unpruned prefill",
        lambda row: row["latency_ratio"],
        lambda x: f"{x:.0%}",
        10,
        6,
    ),
}
