"""Build the grid of a sweep: every method that can be served, crossed with all that the config varies; each cell once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

from configs import plugin
from configs.errors import TRAIN
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
    require_own_labels,
)
from stage2_prune.evaluation.cells import build as build_method
from stage2_prune.evaluation.opening import bind
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import Features
from stage2_prune.session.session import Session, open_features
from stage2_prune.sweep.raster_order import RasterOrder
from store.reading.absent import how_to_add

OrderChoice = Literal["default", "raster"]
"""The order of kept patches: the method's own order, or raster order."""


@dataclass(frozen=True)
class Servable:
    """The methods that a store can serve."""

    features: Features
    """The store, opened for the arrays that `variants` read."""
    variants: list["Variant"]
    unavailable: list[Unavailable]


@dataclass(frozen=True)
class Variant:
    """A method with its parameters and the factors that its cells share."""

    label: str
    """The name in results, which also begins the names of files."""
    method: str
    """What the config calls the method, or else its name; a method given by a path has the file's name without `.py`."""
    pruner: Pruner
    order: OrderChoice
    match: Match


@dataclass
class Grid:
    """The cells of a sweep, and the methods and budgets that cannot run."""

    variants: dict[str, Variant] = field(default_factory=dict[str, Variant])
    """The variants that the store can serve, by label."""
    cells: list[Cell] = field(default_factory=list[Cell])
    infeasible: list[Unmet] = field(default_factory=list[Unmet])
    unavailable: list[Unavailable] = field(default_factory=list[Unavailable])
    digests: dict[str, str] = field(default_factory=dict[str, str])
    """Digests of the weights that methods use, by label."""


def wanted(experiment: Experiment) -> list[Variant]:
    """List all methods that the config names, in its order, whether or not their needs can be met.

    Raises:
        PrunerMisused: (exit 2) if the config names no method, or two methods have one name.
    """
    classes = plugin.find_all(pruners, Pruner)
    section = experiment.sweep
    matches = tuple(dict.fromkeys(section.matches)) or (experiment.prune.match,)
    named: dict[str, Variant] = {}
    methods = variants(experiment, classes)[0]
    require_own_labels(methods)
    for method in methods:
        pruner = build_method(method, classes)
        inside = pruner.place == "in_llm" and pruner.budget != "fixed"
        for order in _orders(section.order, pruner):
            for match in matches if inside else matches[:1]:
                factors = {"order": order} if order == "raster" else {}
                factors |= {"match": match} if inside and match != "mean-tokens" else {}
                factors |= {} if method.weights is None else {"weights": method.weights}
                label = label_of(method.known_as, pruner, factors)
                named.setdefault(label, Variant(label, method.known_as, pruner, order, match))
    if not named:
        raise PrunerMisused("expected methods to sweep over, there are none: set sweep.methods to `all`, or name some")
    return list(named.values())


def _orders(choices: Sequence[OrderChoice], pruner: Pruner) -> Sequence[OrderChoice]:
    """Choose the orders that differ: a method that keeps patches in raster order anyway has a single one."""
    return tuple(dict.fromkeys(choices)) if pruner.order == "own" else ("default",)


def label_of(method: str, pruner: Pruner, factors: Mapping[str, Any]) -> str:
    """Label a method by its name, the parameters that differ from its defaults, and `factors`.

    The label depends on nothing else, so that cells keep their names when a config grows.

    >>> from stage2_prune.pruners.first_last import FirstLast
    >>> label_of("first_last", FirstLast(), {}), label_of("first_last", FirstLast("last"), {"order": "raster"})
    ('first_last', 'first_last@end=last,order=raster')
    """
    assert is_dataclass(pruner), f"{method} must be a frozen dataclass"
    parameters = {f.name: value for f in fields(pruner) if (value := getattr(pruner, f.name)) != f.default}
    differing = parameters | dict(factors)
    if not differing:
        return method
    return label_with(method, ",".join(f"{name}={value}" for name, value in differing.items()))


def open_servable(experiment: Experiment, named: Sequence[Variant]) -> Servable:
    """Open the store for the variants whose arrays and questions can be read; list the others with what each of them needs."""
    features = open_features(experiment, (), optional=needs(named))
    _, without_text = available({variant.label: variant.pruner for variant in named}, experiment.model)
    reasons = {method.pruner: method.reason for method in without_text}
    for variant in named:
        absent = sorted(variant.pruner.needs - features.needs)
        if absent and variant.label not in reasons:
            reasons[variant.label] = f"needs {', '.join(absent)}: {how_to_add(absent, features.store.plan)}"
    served = [variant for variant in named if variant.label not in reasons]
    unserved = [Unavailable(variant.label, reasons[variant.label]) for variant in named if variant.label in reasons]
    return Servable(features.reading(needs(served)), served, unserved)


def build(session: Session, named: Sequence[Variant]) -> Grid:
    """Build the grid of the variants that a store serves; list trained methods without weights as unavailable."""
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
            reason = f"needs trained weights: run {TRAIN}" if plain else str(lacking)
            grid.unavailable.append(Unavailable(variant.label, reason))
            continue
        grid.variants[variant.label] = variant
        prune = experiment.prune.model_copy(update={"match": variant.match})
        matched = experiment.model_copy(update={"prune": prune})
        cells, unmet = plan(matched, {variant.label: pruner}, patches, session.language.depth)
        if variant.order == "raster":
            cells = [replace(cell, pruner=RasterOrder(cell.pruner)) for cell in cells]
        grid.cells += cells
        grid.infeasible += unmet
    return grid


def _bound(session: Session, variant: Variant, grid: Grid) -> Pruner:
    """Bind a variant's pruner; a trained pruner gets the weights that lie where `train` puts them."""
    label = variant.label
    if isinstance(variant.pruner, TrainedPruner) and not _names_weights(variant.pruner):
        configured = configured_pruners(session.experiment)
        labels = (
            name for name, pruner in configured.items() if pruner == variant.pruner and not _names_weights(pruner)
        )
        label = next(labels, variant.method)
    bound, digests = bind(session, {label: variant.pruner})
    if label in digests:
        grid.digests[variant.label] = digests[label]
    return bound[label]


def _names_weights(pruner: Pruner) -> bool:
    """Tell whether the config names the folder of a method's weights."""
    return isinstance(pruner, TrainedPruner) and pruner.weights is not None


def needs(named: Sequence[Variant]) -> frozenset[str]:
    """List all arrays that the methods read."""
    return frozenset[str]().union(*(variant.pruner.needs for variant in named))
