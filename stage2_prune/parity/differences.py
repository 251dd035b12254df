"""How far two modes of parity are apart, gathered over batches."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from stage2_prune.parity.modes import Outcome

ATOL = 1e-5
"""Of `torch.allclose`, as in the hunt that this table repeats; its relative tolerance stays torch's own."""


@dataclass
class Gap:
    """The difference of two tensors that come in parts."""

    max_abs: float = 0.0
    total_abs: float = 0.0
    values: int = 0
    allclose: bool = True
    bit_equal: bool = True

    def add(self, a: Float[Tensor, "..."], b: Float[Tensor, "..."]) -> None:
        """One more part; parts of different shapes are compared where they overlap and are not equal."""
        if a.shape != b.shape:
            self.allclose = self.bit_equal = False
            overlap = tuple(slice(min(sizes)) for sizes in zip(a.shape, b.shape, strict=True))
            a, b = a[overlap], b[overlap]
        # Equal bits are no difference, also of infinities; other bits where one is not a number are an infinite one.
        difference = (a.double() - b.double()).abs().nan_to_num(nan=math.inf).masked_fill(_same_bits(a, b), 0)
        self.max_abs = max(self.max_abs, difference.max().item())
        self.total_abs += difference.sum().item()
        self.values += difference.numel()
        self.allclose &= torch.allclose(a, b, atol=ATOL, equal_nan=True)
        self.bit_equal &= bool(_same_bits(a, b).all())

    @property
    def mean_abs(self) -> float:
        """Over all values."""
        return self.total_abs / self.values if self.values else 0.0


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    return a.contiguous().view(bits) == b.contiguous().view(bits)


def _finite(number: float) -> float | None:
    """JSON has no infinity."""
    return number if math.isfinite(number) else None


@dataclass
class Pair:
    """Two modes."""

    a: str
    b: str
    features: Gap = field(default_factory=Gap)
    logits: Gap = field(default_factory=Gap)
    tokens_equal: bool = True

    def add(self, outcomes: dict[str, Outcome]) -> None:
        """One more batch."""
        one, other = outcomes[self.a], outcomes[self.b]
        self.features.add(one.features, other.features)
        self.logits.add(one.logits, other.logits)
        self.tokens_equal &= torch.equal(one.tokens, other.tokens)

    @property
    def equal(self) -> bool:
        """Whether features, logits and tokens are the same bits."""
        return self.features.bit_equal and self.logits.bit_equal and self.tokens_equal

    def as_json(self) -> dict[str, Any]:
        """As parity.json has it; a difference that is not finite is null."""
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
