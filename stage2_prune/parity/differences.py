"""Measure how far the results of two parity modes are apart, over all batches."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.parity.modes import Outcome

ATOL = 1e-5
"""Absolute tolerance of `torch.allclose`; the relative tolerance is torch's default."""


@dataclass
class Gap:
    """The difference between two tensors that come in parts, one part per batch."""

    max_abs: float = 0.0
    total_abs: float = 0.0
    values: int = 0
    allclose: bool = True
    bit_equal: bool = True

    def add(self, a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> None:
        """Compare one more part. Parts of different shapes count as different, and are measured where they overlap."""
        if a.shape != b.shape:
            self.allclose = self.bit_equal = False
            overlap = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
            a, b = a[overlap], b[overlap]
        # Equal bits, infinities included, have difference 0; unequal bits of which one is NaN have an infinite difference.
        difference = (a.double() - b.double()).abs().nan_to_num(nan=math.inf).masked_fill(_same_bits(a, b), 0)
        self.max_abs = max(self.max_abs, difference.max().item())
        self.total_abs += difference.sum().item()
        self.values += difference.numel()
        self.allclose &= torch.allclose(a, b, atol=ATOL, equal_nan=True)
        self.bit_equal &= bool(_same_bits(a, b).all())

    @property
    def mean_abs(self) -> float:
        """The mean absolute difference over all values."""
        return self.total_abs / self.values if self.values else 0.0


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.contiguous().view(bits) == b.contiguous().view(bits)


def _finite(number: float) -> float | None:
    """Replace a number that is not finite by None, as JSON has no infinity."""
    return number if math.isfinite(number) else None


@dataclass
class Pair:
    """The comparison of two modes: their features, logits and tokens."""

    a: str
    b: str
    features: Gap = field(default_factory=Gap)
    logits: Gap = field(default_factory=Gap)
    tokens_equal: bool = True

    def add(self, outcomes: dict[str, Outcome]) -> None:
        """Compare the outcomes of one more batch."""
        a, b = outcomes[self.a], outcomes[self.b]
        self.features.add(a.features, b.features)
        self.logits.add(a.logits, b.logits)
        self.tokens_equal &= torch.equal(a.tokens, b.tokens)

    @property
    def equal(self) -> bool:
        """Whether features, logits and tokens have the same bits."""
        return self.features.bit_equal and self.logits.bit_equal and self.tokens_equal

    def as_json(self) -> dict[str, Any]:
        """Format the comparison as in parity.json; a difference that is not finite is null."""
        features, logits = self.features, self.logits
        return {
            "a": self.a,
            "b": self.b,
            "features": {
                "max_abs_diff": _finite(features.max_abs),
                "mean_abs_diff": _finite(features.mean_abs),
                "allclose": features.allclose,
                "bit_equal": features.bit_equal,
            },
            "logits": {"max_abs_diff": _finite(logits.max_abs), "bit_equal": logits.bit_equal},
            "tokens_equal": self.tokens_equal,
        }
