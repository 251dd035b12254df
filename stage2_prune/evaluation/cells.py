"""Plan the grid of an evaluation: a cell for every (pruner, budget, positions, seed) of a config."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from configs import plugin
from configs.budgets import file_part
from configs.experiment import EvalSection, Experiment, Match, Method, ModelSection, Positions
from configs.load import build_pruner
from stage2_prune import pruners
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.pruning.in_llm import InLLMPruner, check_positions
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.pruning.schedule import Schedule, published, whole
from stage2_prune.session.prune_batch import ABOUT_QUESTIONS


@dataclass(frozen=True)
class Cell:
    """One combination of method, budget, positions and seed: the unit of an evaluation, with a predictions file of its own."""

    label: str
    """What the config calls the method, followed by its parameters if the config names one method more than once."""
    pruner: Pruner
    keep: int | float | str | None
    """The budget as the config states it; None for a method that decides its number of tokens itself."""
    positions: Positions
    seed: int | None
    """The seed; None for a method that is not randomised."""
    schedule: Schedule
    """Visual tokens that enter each layer: the same number everywhere if the method drops before the language model."""

    @property
    def name(self) -> str:
        """The cell's name, which is also the name of its predictions file."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        keep = OWN if self.keep is None else file_part(self.keep)
        return f"{self.label}-{keep}-{self.positions}{seed}"


_LONGEST = 120
"""The largest number of characters in a label."""
OWN = "own"
"""Stands in names for the budget of a method that decides its number of tokens itself."""


@dataclass(frozen=True)
class Unavailable:
    """A method whose needs cannot be met; results list it with the reason."""

    pruner: str
    reason: str


@dataclass(frozen=True)
class Unmet:
    """A budget that a method cannot meet; results list it with the reason."""

    pruner: str
    keep: int | float | str
    """The budget as the config states it."""
    positions: Positions
    reason: str


def shares_prefix(cell: Cell, section: EvalSection) -> bool:
    """Return whether questions about one image share a prefill: with `eval.share_prefix`, where the method allows it.

    Without visual tokens there is nothing to share.
    """
    alike = cell.pruner.place == "before_llm" and not cell.pruner.reads & ABOUT_QUESTIONS
    return section.share_prefix and alike and cell.schedule.entering > 0


def configured_pruners(experiment: Experiment) -> dict[str, Pruner]:
    """Build the pruners of `prune.methods`, by label, in the order of the config.

    Raises:
        PrunerMisused: (exit 2) if `prune.methods` is empty, names a method twice with the same parameters, or two methods have
            one name.
    """
    if not experiment.prune.methods:
        raise PrunerMisused("expected pruners to evaluate, prune.methods is empty: name one, such as keep_all")
    classes = plugin.find_all(pruners, Pruner)
    require_own_labels(experiment.prune.methods)
    counts = Counter(method.known_as for method in experiment.prune.methods)
    built: dict[str, Pruner] = {}
    for method in experiment.prune.methods:
        named = {} if method.weights is None else {"weights": method.weights}
        given = ",".join(f"{key}={value}" for key, value in {**method.parameters, **named}.items())
        name = method.known_as
        label = name if counts[name] == 1 or not given else label_with(name, given)
        if label in built:
            raise PrunerMisused(f"prune.methods names {label} twice: remove one, or give them different parameters")
        built[label] = build(method, classes)
    return built


def require_own_labels(methods: Iterable[Method]) -> None:
    """Refuse two methods that results would call by one name, such as a file and a built-in method (PrunerMisused, exit 2)."""
    names: dict[str, str] = {}
    for method in methods:
        other = names.setdefault(method.known_as, method.name)
        if other != method.name:
            raise PrunerMisused(
                f"expected methods of different names, {other} and {method.name} are both called {method.known_as}: give one of "
                f"them a `label`, as in {{name: {method.name}, label: another}}"
            )


def label_with(method: str, details: str) -> str:
    """Make a label, with which file names begin, of a method's name and the details that tell the method apart.

    If the label would be too long, a digest replaces the details.
    """
    label = re.sub(r"[^\w.=@,-]", "_", f"{method}@{details}")
    return label if len(label) <= _LONGEST else f"{method}@{sha256(details.encode()).hexdigest()[:16]}"


def build(method: Method, classes: Mapping[str, type[Pruner]]) -> Pruner:
    """Build the pruner of a config's method; give a trained pruner the folder of its weights if the config names one."""
    pruner: Pruner = build_pruner(method, classes)
    if method.weights is None:
        return pruner
    if not isinstance(pruner, TrainedPruner):
        raise PrunerMisused(
            f"prune.methods: expected `weights` of a trained method, {method.name} has none: remove `weights`"
        )
    return pruner.trained_in(method.weights)


def available(methods: Mapping[str, Pruner], model: ModelSection) -> tuple[dict[str, Pruner], list[Unavailable]]:
    """Split off methods that read CLIP text where no CLIP is configured, with the reason; return the other methods first."""
    lacks_text = {label for label, pruner in methods.items() if "clip_text" in pruner.reads and model.clip is None}
    reason = "needs CLIP's text encoder: name a checkpoint with --clip, in `extract` too"
    return (
        {label: pruner for label, pruner in methods.items() if label not in lacks_text},
        [Unavailable(label, reason) for label in methods if label in lacks_text],
    )


def require_budgets(experiment: Experiment, methods: Mapping[str, Pruner]) -> None:
    """Refuse an empty list of budgets (PrunerMisused, exit 2), unless none of the methods takes a budget."""
    if not experiment.prune.budgets:
        needing = [name for name, pruner in methods.items() if pruner.takes_budget]
        if needing:
            raise PrunerMisused(f"expected a budget for {needing[0]}, prune.budgets is empty: name one, such as 64")


def check_budgets(experiment: Experiment, patches: int) -> None:
    """Refuse budgets of more visual tokens than an image has (PrunerMisused, exit 2)."""
    too_large = [keep for keep in experiment.prune.budgets if not isinstance(keep, str) and keep > patches]
    if too_large:
        raise PrunerMisused(
            f"expected budgets of at most {patches} visual tokens, the number of patches of this store; "
            f"prune.budgets has {', '.join(map(str, too_large))}"
        )


def plan(
    experiment: Experiment, methods: Mapping[str, Pruner], patches: int, depth: int
) -> tuple[list[Cell], list[Unmet]]:
    """List every cell in the order of the config: methods, then budgets, positions and seeds.

    Args:
        experiment: the config.
        methods: the pruners by label.
        patches: the number of visual tokens per image.
        depth: the number of the language model's layers.

    Returns:
        The cells, and the budgets that a method cannot meet.
    """
    section = experiment.prune
    cells: list[Cell] = []
    unmet: list[Unmet] = []
    for label, pruner in methods.items():
        fixed = pruner.budget == "fixed"
        once = fixed and pruner.place == "before_llm"  # a reference such as keep_all runs once
        choices = _positions(section.positions, pruner)[: 1 if once else None]
        for budget in tuple(dict.fromkeys(section.budgets)) if pruner.takes_budget else (0,):
            for positions in choices:
                try:
                    schedule = _schedule(pruner, patches, depth, budget, positions, section.match)
                except Infeasible as impossible:
                    unmet.append(Unmet(label, budget, positions, str(impossible)))
                    continue
                keep = budget if pruner.takes_budget else round(schedule.mean) if fixed else None
                cells += _seeded(Cell(label, pruner, keep, positions, None, schedule), section.seeds)
    return cells, unmet


def _schedule(
    pruner: Pruner, patches: int, depth: int, budget: int | float | str, positions: Positions, match: Match
) -> Schedule:
    """Plan how many visual tokens enter each layer; raise Infeasible if the method cannot meet the budget."""
    if isinstance(pruner, InLLMPruner):
        schedule = (
            published(budget, pruner.published(patches, depth))
            if isinstance(budget, str)
            else pruner.schedule(patches, depth, budget, match)
        )
        check_positions(schedule, positions)
        return schedule
    if pruner.adaptive and not pruner.takes_budget:
        return Schedule(depth, patches)  # the most that the method may keep; predictions record what it kept
    return Schedule(depth, pruner.fixed_keep(patches) if pruner.budget == "fixed" else whole(budget, patches))


def _positions(asked: tuple[str, ...], pruner: Pruner) -> tuple[Positions, ...]:
    resolved = [pruner.positions if choice == "default" else choice for choice in asked]
    return tuple(dict.fromkeys(resolved))  # type: ignore[arg-type]


def _seeded(cell: Cell, seeds: int) -> list[Cell]:
    """Repeat the cell once per seed, from the pruner's own seed on; a method that is not randomised stays one cell."""
    if not cell.pruner.randomised:
        return [cell]
    first: int = cell.pruner.parameters()["seed"]
    return [
        replace(cell, seed=seed, pruner=replace(cell.pruner, seed=seed))  # type: ignore[type-var]
        for seed in range(first, first + seeds)
    ]
