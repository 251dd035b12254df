"""Fits one stored row of an array to what one forward of the tower shows: layer, CLS row, order, scale, round trip.

Nothing here runs the tower. What is made under a hypothesis is compared with what is stored; a factor and an order of the
patches that has no name are found by comparing, everything else is a finite list.
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
"""Layers, and arrangements of them, that are looked at closely: those whose difference is smallest at a first glance."""
NEAR = 0.1
"""Relative difference above which no scale or round trip is tried: it could not explain it."""
SAME_NORM = 1e-3
"""Relative spread of the tokens' lengths up to which they count as equal."""
WORTH = 0.5
"""What a factor or another cause must bring the difference down to, relatively, to be worth naming."""


@dataclass(frozen=True)
class Base:
    """What a layer gives for one row of an array, before anything else happens to it."""

    choices: Hypothesis
    tokens: Float[Tensor, "token width"]
    leading: int = 0
    """Rows before the patches, which no order of the patches moves."""
    has_order: bool = True


@dataclass(frozen=True)
class Trial:
    """How well a hypothesis makes one stored row."""

    hypothesis: Hypothesis
    equal: bool
    """Bit for bit."""
    residual: float
    """Relative root mean square of the difference."""
    peak: float
    """Largest difference of a value, relative to the value and to the row's root mean square."""

    @property
    def causes(self) -> tuple[Cause, ...]:
        """What is wrong under the hypothesis."""
        return causes_of(self.hypothesis)

    def rank(self) -> tuple[float | int, ...]:
        """Order trials: bit-equal ones first, by their causes; others by what they leave, each cause worth half of it."""
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
    """Lead a base through order, scale and round trip of a hypothesis into the dtype of the store."""
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
    """Return the best way to make a stored row from one of the bases, None where none has its shape."""
    bases = [base for base in bases if base.tokens.shape == stored.shape]
    if not bases:
        return None
    target = stored.to(bases[0].tokens.device).float()
    glances = sorted(_glances(_shortlist(bases, target), target, orders), key=lambda one: one[0])[:FEW]
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
    """Lead a tensor through another dtype and back; None leaves it as it is."""
    return tensor if trip is None else tensor.to(torch_dtype(trip)).to(tensor.dtype)


def _shortlist(bases: Sequence[Base], target: Float[Tensor, "token width"]) -> list[Base]:
    """Choose the bases that are nearest, token by token or by the tokens' lengths, which no order and no factor changes."""
    lengths = _relative_lengths(target)
    by_length = [(_relative_lengths(base.tokens.float()) - lengths).norm().item() for base in bases]
    by_value = [_scaled_residual(base.tokens.float(), target) for base in bases]
    chosen = {*range(min(FEW, len(bases)))} if len(target) == 1 else _smallest(by_length)
    return [bases[place] for place in sorted(chosen | _smallest(by_value))]


def _smallest(numbers: Sequence[float]) -> set[int]:
    return set(sorted(range(len(numbers)), key=lambda place: numbers[place])[:FEW])


def _relative_lengths(tokens: Float[Tensor, "token width"]) -> Float[Tensor, " token"]:
    lengths = tokens.norm(dim=-1).sort().values
    return lengths / lengths.norm().clamp_min(torch.finfo(torch.float32).tiny)


def _glances(
    bases: Sequence[Base], target: Float[Tensor, "token width"], orders: Sequence[Choice]
) -> Iterator[tuple[float, Base, Choice]]:
    """Yield what is left unexplained by each base in each order, with the factor that suits it best."""
    for base in bases:
        named = [order for order in orders if order.value is None or base.has_order]
        for order in named:
            if order.value is None or len(order.value) + base.leading == len(target):
                yield _scaled_residual(arranged(base, order).float(), target), base, order
        found = _found_order(base, target)
        if found is not None:
            yield _scaled_residual(arranged(base, found).float(), target), base, found


def _scaled_residual(made: Float[Tensor, "token width"], target: Float[Tensor, "token width"]) -> float:
    """Return the relative difference, with the factor that makes it smallest."""
    total = target.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    explained = (made * target).sum().square() / made.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    left = (total - explained) / total
    if left < SAME_NORM:  # too near for float32
        factor = _factor(made, target)
        return ((made * factor - target).norm() / total.sqrt()).item()
    return left.clamp_min(0).sqrt().nan_to_num(nan=torch.inf).item()


def _factor(made: Tensor, target: Tensor) -> float:
    made, target = made.double(), target.double()
    return ((made * target).sum() / made.square().sum().clamp_min(torch.finfo(torch.float64).tiny)).item()


def _found_order(base: Base, target: Float[Tensor, "token width"]) -> Choice | None:
    """Find the order in which each stored token is the nearest of the base's, if it is one and moves patches alone."""
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
    """Yield round trips, factors, and both in both orders, for a base that is near."""
    real = [trip for trip in trips if trip.value is not None]
    after = [{"rounding": Choice((trip.value, False), trip.cause)} for trip in real]
    before = [{"rounding": Choice((trip.value, True), trip.cause)} for trip in real]
    yield from after
    for factor in _factors(made, target):
        scale = {"scale": scaled(factor)}
        yield scale
        yield from (scale | trip for trip in (*after, *before))


def _factors(made: Float[Tensor, "token width"], target: Float[Tensor, "token width"]) -> list[float | str]:
    """List the factors that may have been meant: simple numbers first, then the one that suits best."""
    lengths = target.norm(dim=-1)
    if len(target) > 1 and lengths.std() < SAME_NORM and (lengths - 1).abs().max() < 10 * SAME_NORM:
        return [UNIT]
    exact = _factor(made, target)
    if exact == 0 or (made * exact - target).norm() > WORTH * (made - target).norm():
        return []
    simple = {float(f"{exact:.{digits}g}"): None for digits in (1, 2, 3, 6)} | {1 / float(f"{1 / exact:.3g}"): None}
    return [*(one for one in simple if abs(one / exact - 1) < SAME_NORM), exact]
