"""Fit one stored row of an array to one forward of the tower: by layer, CLS row, order, scale and round trip.

Nothing here runs the tower. Tokens that are made under a hypothesis are compared with the stored ones. A factor, and an
order of the patches that has no name, are computed by comparing; all other choices come from finite lists.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage1_extract.diagnose.suspects import UNIT, Cause, Choice, Hypothesis, causes_of, permuted, scaled
from store.layout.schema import Dtype
from store.layout.tensors import torch_dtype

FEW = 3
"""Number of layers, and of their arrangements, that are compared closely; the rest differ more at a first glance."""
NEAR = 0.1
"""Relative difference above which no scale or round trip is tried, as neither could explain it."""
SAME_NORM = 1e-3
"""Relative spread up to which the tokens' lengths count as equal."""
WORTH = 0.5
"""Largest share of the difference that may remain for a factor, or for one more cause, to be named."""


@dataclass(frozen=True)
class Base:
    """The tokens that a layer gives for one row of an array, before order, scale and round trip."""

    choices: Hypothesis
    tokens: Float[Tensor, "token width"]
    leading: int = 0
    """Number of tokens before the patches, which no order of the patches moves."""
    has_order: bool = True
    """Whether the tokens are patches, which may lie in another order."""


@dataclass(frozen=True)
class Trial:
    """The comparison of one stored row with what a hypothesis makes."""

    hypothesis: Hypothesis
    equal: bool
    """Whether the row is equal bit for bit."""
    residual: float
    """Relative root mean square of the difference."""
    peak: float
    """Largest difference of a value, relative to the value and to the row's root mean square."""

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What is wrong if the hypothesis is true."""
        return causes_of(self.hypothesis)

    def rank(self) -> tuple[float | int, ...]:
        """Return a key that sorts trials, the best first.

        Bit-equal trials come first, trials with fewer causes before others. The rest is sorted by residual, where each cause
        must halve the residual to pay for itself.
        """
        return (0, len(self.causes)) if self.equal else (1, self.residual / WORTH ** len(self.causes))


def same_bits(made: Tensor, stored: Tensor) -> bool:
    """Return whether two tensors of one dtype hold the same bits."""
    bits = {2: torch.int16, 4: torch.int32}[made.element_size()]
    return made.shape == stored.shape and torch.equal(made.contiguous().view(bits), stored.contiguous().view(bits))


def compare(hypothesis: Hypothesis, made: Float[Tensor, "..."], stored: Float[Tensor, "..."]) -> Trial:
    """Compare what a hypothesis makes with what is stored; `made` has the store's dtype."""
    if same_bits(made, stored):
        return Trial(hypothesis, True, 0.0, 0.0)
    if made.shape != stored.shape:
        return Trial(hypothesis, False, torch.inf, torch.inf)
    ours, theirs = made.double(), stored.double()
    apart, size = (ours - theirs).abs(), theirs.square().mean().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    residual, peak = apart.square().mean().sqrt() / size, (apart / (theirs.abs() + size)).max()
    return Trial(hypothesis, False, residual.nan_to_num(nan=torch.inf).item(), peak.nan_to_num(nan=torch.inf).item())


def finish(base: Base, hypothesis: Hypothesis, dtype: torch.dtype) -> Float[Tensor, "token width"]:
    """Apply the order, scale and round trip of a hypothesis to a base, and cast the result to the store's dtype."""
    made = arranged(base, hypothesis["order"]) if "order" in hypothesis else base.tokens
    factor = hypothesis["scale"].value if "scale" in hypothesis else None
    trip, before = hypothesis["rounding"].value if "rounding" in hypothesis else (None, False)
    if before:
        made = through(made, trip)
    if factor is not None:
        made = made / made.norm(dim=-1, keepdim=True) if factor == UNIT else made * factor
    return (made if before else through(made, trip)).to(dtype).cpu()


def arranged(base: Base, order: Choice) -> Float[Tensor, "token width"]:
    """Lay the patches of a base in another order."""
    if order.value is None or not base.has_order:
        return base.tokens
    leading = torch.arange(base.leading)
    return base.tokens[torch.cat([leading, order.value + base.leading]).to(base.tokens.device)]


def fit(
    bases: Sequence[Base], stored: Float[Tensor, "token width"], orders: Sequence[Choice], trips: Sequence[Choice]
) -> Trial | None:
    """Return the best trial that makes a stored row from one of the bases; None where no base has the row's shape."""
    bases = [base for base in bases if base.tokens.shape == stored.shape]
    if not bases:
        return None
    target = stored.to(bases[0].tokens.device).float()
    glances = sorted(_glances(_shortlist(bases, target), target, orders), key=lambda glance: glance[0])[:FEW]
    trials: list[Trial] = []
    for residual, base, order in glances:
        plain = {**base.choices, **({} if order.cause is None else {"order": order})}
        trials.append(compare(plain, finish(base, plain, stored.dtype), stored))
        if residual > NEAR or trials[-1].equal:
            continue
        for change in _changes(arranged(base, order).float(), target, trips):
            hypothesis = {**plain, **change}
            trials.append(compare(hypothesis, finish(base, hypothesis, stored.dtype), stored))
    return min(trials, key=Trial.rank)


def through(tensor: Tensor, trip: Dtype | None) -> Tensor:
    """Cast a tensor to another dtype and back; None leaves the tensor as it is."""
    return tensor if trip is None else tensor.to(torch_dtype(trip)).to(tensor.dtype)


def _shortlist(bases: Sequence[Base], target: Float[Tensor, "token width"]) -> list[Base]:
    """Choose the nearest bases: by the tokens' values, and by their lengths, which no order and no factor changes."""
    lengths = _relative_lengths(target)
    by_length = [(_relative_lengths(base.tokens.float()) - lengths).norm().item() for base in bases]
    by_value = [_scaled_residual(base.tokens.float(), target) for base in bases]
    chosen = {*range(min(FEW, len(bases)))} if len(target) == 1 else _smallest(by_length)
    return [bases[index] for index in sorted(chosen | _smallest(by_value))]


def _smallest(numbers: Sequence[float]) -> set[int]:
    return set(sorted(range(len(numbers)), key=lambda index: numbers[index])[:FEW])


def _relative_lengths(tokens: Float[Tensor, "token width"]) -> Float[Tensor, " token"]:
    lengths = tokens.norm(dim=-1).sort().values
    return lengths / lengths.norm().clamp_min(torch.finfo(torch.float32).tiny)


def _glances(
    bases: Sequence[Base], target: Float[Tensor, "token width"], orders: Sequence[Choice]
) -> Iterator[tuple[float, Base, Choice]]:
    """Yield the residual of each base in each order, with the factor that fits best."""
    for base in bases:
        named = [order for order in orders if order.value is None or base.has_order]
        for order in named:
            if order.value is None or len(order.value) + base.leading == len(target):
                yield _scaled_residual(arranged(base, order).float(), target), base, order
        nameless = _nameless_order(base, target)
        if nameless is not None:
            yield _scaled_residual(arranged(base, nameless).float(), target), base, nameless


def _scaled_residual(made: Float[Tensor, "token width"], target: Float[Tensor, "token width"]) -> float:
    """Return the relative difference, with the factor that makes the difference smallest."""
    total = target.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    explained = (made * target).sum().square() / made.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    left = (total - explained) / total
    if left < SAME_NORM:  # so near that float32 would lose the difference of the sums
        factor = _factor(made, target)
        return ((made * factor - target).norm() / total.sqrt()).item()
    return left.clamp_min(0).sqrt().nan_to_num(nan=torch.inf).item()


def _factor(made: Tensor, target: Tensor) -> float:
    """Return the factor that brings `made` nearest to the target, by least squares."""
    made, target = made.double(), target.double()
    return ((made * target).sum() / made.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).item()


def _nameless_order(base: Base, target: Float[Tensor, "token width"]) -> Choice | None:
    """Match each stored token with the nearest token of the base; None if the matches are no order, or move the CLS row."""
    if not base.has_order or len(target) == 1:
        return None
    made = base.tokens.float()
    factor = (target.norm() / made.norm().clamp_min(torch.finfo(torch.float32).tiny)).item()
    nearest: Int[Tensor, " token"] = torch.cdist(target, made * factor).argmin(1).cpu()
    moved = torch.arange(len(target))
    if torch.equal(nearest, moved) or not torch.equal(nearest.sort().values, moved):
        return None
    if not torch.equal(nearest[: base.leading], moved[: base.leading]):
        return None
    return permuted(nearest[base.leading :] - base.leading)


def _changes(
    made: Float[Tensor, "token width"], target: Float[Tensor, "token width"], trips: Sequence[Choice]
) -> Iterator[Hypothesis]:
    """Yield the changes to try on a near base: each round trip, each factor, and each pair of them in both orders."""
    real = [trip for trip in trips if trip.value is not None]
    after = [{"rounding": Choice((trip.value, False), trip.cause)} for trip in real]
    before = [{"rounding": Choice((trip.value, True), trip.cause)} for trip in real]
    yield from after
    for factor in _factors(made, target):
        scale = {"scale": scaled(factor)}
        yield scale
        yield from (scale | trip for trip in (*after, *before))


def _factors(made: Float[Tensor, "token width"], target: Float[Tensor, "token width"]) -> list[float | str]:
    """List the factors to try: simple numbers near the best-fitting factor first, then that factor itself."""
    lengths = target.norm(dim=-1)
    if len(target) > 1 and lengths.std() < SAME_NORM and (lengths - 1).abs().max() < 10 * SAME_NORM:
        return [UNIT]
    exact = _factor(made, target)
    if exact == 0 or (made * exact - target).norm() > WORTH * (made - target).norm():
        return []
    simple = {float(f"{exact:.{digits}g}"): None for digits in (1, 2, 3, 6)} | {1 / float(f"{1 / exact:.3g}"): None}
    return [*(factor for factor in simple if abs(factor / exact - 1) < SAME_NORM), exact]
