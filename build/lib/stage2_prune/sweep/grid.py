"""The grid of a sweep: every method that can be served, crossed with all that the config varies; each cell once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from configs import plugin
from configs.experiment import Experiment, Match
from configs.variants import variants
from stage2_prune import pruners
from stage2_prune.errors import NotExtracted, NotTrained, PrunerMisused, WeightsMismatch
from stage2_prune.evaluation.cells import (
    Cell,
    Unavailable,
    Unmet,
    available,
    check_budgets,
    configured_pruners,
    label_with,
    plan,
)
from stage2_prune.evaluation.cells import build as build_method
from stage2_prune.evaluation.evaluate import bind
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.session import Session
from stage2_prune.sweep.raster_order import RasterOrder
from store.reading.absent import how_to_add
from store.reading.reader import FeatureStore

Order = Literal["default", "raster"]


@dataclass(frozen=True)
class Variant:
    """A method with its parameters and the factors that cells of it share."""

    label: str
    method: str
    """Its file's name."""
    pruner: Pruner
    order: Order
    match: Match


@dataclass
class Grid:
    """What is asked, and what cannot be."""

    variants: dict[str, Variant] = field(default_factory=dict[str, Variant])
    """By label, those that the store can serve."""
    cells: list[Cell] = field(default_factory=list[Cell])
    infeasible: list[Unmet] = field(default_factory=list[Unmet])
    unavailable: list[Unavailable] = field(default_factory=list[Unavailable])
    digests: dict[str, str] = field(default_factory=dict[str, str])
    """Of trained weights, by label."""


def wanted(experiment: Experiment) -> list[Variant]:
    """All methods that the config names, in its order, whatever they need."""
    classes = plugin.find_all(pruners, Pruner)
    section = experiment.sweep
    matches = tuple(dict.fromkeys(section.matches)) or (experiment.prune.match,)
    found: dict[str, Variant] = {}
    for method in variants(experiment, classes)[0]:
        pruner = build_method(method, classes)
        inside = pruner.place == "in_llm" and pruner.budget != "fixed"
        for order in _orders(section.order, pruner):
            for match in matches if inside else matches[:1]:
                other = {"order": order} if order == "raster" else {}
                other |= {"match": match} if inside and match != "mean-tokens" else {}
                other |= {} if method.weights is None else {"weights": method.weights}
                label = label_of(method.name, pruner, other)
                found.setdefault(label, Variant(label, method.name, pruner, order, match))
    if not found:
        raise PrunerMisused("expected methods to sweep over, there are none: set sweep.methods to `all`, or name some")
    return list(found.values())


def _orders(asked: Sequence[Order], pruner: Pruner) -> Sequence[Order]:
    """Those that differ: a method that keeps patches in raster order has one."""
    return tuple(dict.fromkeys(asked)) if pruner.order == "own" else ("default",)


def label_of(method: str, pruner: Pruner, other: Mapping[str, Any]) -> str:
    """A name that depends on nothing but the method and what differs from its defaults: cells keep it when a config grows.

    >>> from stage2_prune.pruners.first_last import FirstLast
    >>> label_of("first_last", FirstLast(), {}), label_of("first_last", FirstLast("last"), {"order": "raster"})
    ('first_last', 'first_last@end=last,order=raster')
    """
    assert is_dataclass(pruner), f"{method} must be a frozen dataclass"
    differing = {
        one.name: value for one in fields(pruner) if (value := getattr(pruner, one.name)) != one.default
    } | dict(other)
    if not differing:
        return method
    said = ",".join(f"{name}={value}" for name, value in differing.items())
    return label_with(method, said)


def servable(experiment: Experiment, named: Sequence[Variant]) -> tuple[list[Variant], list[Unavailable]]:
    """The methods whose arrays the store has and whose questions can be read, and the others with what they need."""
    store = FeatureStore.open(experiment.store_location)
    _, unread = available({one.label: one.pruner for one in named}, experiment.model)
    reasons = {one.pruner: one.reason for one in unread}
    for one in named:
        absent = sorted(one.pruner.needs - store.arrays.keys())
        if absent and one.label not in reasons:
            reasons[one.label] = f"needs {', '.join(absent)}: {how_to_add(absent, store.plan)}"
    served = [one for one in named if one.label not in reasons]
    return served, [Unavailable(one.label, reasons[one.label]) for one in named if one.label in reasons]


def build(session: Session, named: Sequence[Variant]) -> Grid:
    """The grid of methods that are `servable`; trained ones without weights are listed as unavailable."""
    experiment, patches = session.experiment, session.features.patches
    check_budgets(experiment, patches)
    grid = Grid()
    for variant in named:
        try:
            if variant.pruner.place == "in_llm":
                require_loop(session.language.model.model)
            pruner = _bound(session, variant, grid)
        except (NotTrained, WeightsMismatch, NotExtracted, PrunerMisused) as lacking:
            plain = isinstance(lacking, NotTrained) and not _names_weights(variant.pruner)
            reason = "needs trained weights: run `make train`" if plain else str(lacking)
            grid.unavailable.append(Unavailable(variant.label, reason))
            continue
        grid.variants[variant.label] = variant
        prune = experiment.prune.model_copy(update={"match": variant.match})
        matched = experiment.model_copy(update={"prune": prune})
        depth: int = session.language.model.config.num_hidden_layers
        cells, unmet = plan(matched, {variant.label: pruner}, patches, depth)
        if variant.order == "raster":
            cells = [replace(cell, pruner=RasterOrder(cell.pruner)) for cell in cells]
        grid.cells += cells
        grid.infeasible += unmet
    return grid


def _bound(session: Session, variant: Variant, grid: Grid) -> Pruner:
    """The pruner, a trained one with the weights that lie where `train` puts them."""
    label = variant.label
    if isinstance(variant.pruner, TrainedPruner) and not _names_weights(variant.pruner):
        configured = configured_pruners(session.experiment)
        mine = (name for name, one in configured.items() if one == variant.pruner and not _names_weights(one))
        label = next(mine, variant.method)
    found, digests = bind(session, {label: variant.pruner})
    if label in digests:
        grid.digests[variant.label] = digests[label]
    return found[label]


def _names_weights(pruner: Pruner) -> bool:
    """Whether the config names the folder of a method's weights."""
    return isinstance(pruner, TrainedPruner) and pruner.weights is not None


def needs(named: Sequence[Variant]) -> frozenset[str]:
    """All arrays that some methods read."""
    return frozenset[str]().union(*(one.pruner.needs for one in named))
