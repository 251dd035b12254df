"""The grid of an evaluation: every (pruner, budget, positions, seed) of a config."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from configs import plugin
from configs.experiment import Experiment, Positions
from configs.load import build_pruner
from stage2_prune import pruners
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.in_llm import InLLMPruner
from stage2_prune.pruner import Pruner
from stage2_prune.schedule_budget import Schedule


@dataclass(frozen=True)
class Cell:
    """One thing to evaluate."""

    label: str
    """The method's name, with its parameters where the config names one method more than once."""
    pruner: Pruner
    keep: int
    """Visual tokens per image."""
    positions: Positions
    seed: int | None
    """None for a method that is not randomised."""
    schedule: Schedule
    """Visual tokens that enter each layer: the same everywhere for a method that drops before the language model."""

    @property
    def name(self) -> str:
        """The name of its predictions file."""
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.label}-{self.keep}-{self.positions}{seed}"


@dataclass(frozen=True)
class Unmet:
    """A budget that a method cannot meet; reported beside the results."""

    pruner: str
    keep: int
    reason: str


def configured_pruners(experiment: Experiment) -> dict[str, Pruner]:
    """The pruners of `prune.methods` by label, in the order of the config."""
    if not experiment.prune.methods:
        raise PrunerMisused("expected pruners to evaluate, prune.methods is empty: name one, such as keep_all")
    classes = plugin.find_all(pruners, Pruner)
    counts = Counter(method.name for method in experiment.prune.methods)
    built: dict[str, Pruner] = {}
    for method in experiment.prune.methods:
        given = ",".join(f"{key}={value}" for key, value in method.parameters.items())
        label = method.name if counts[method.name] == 1 or not given else f"{method.name}@{given}"
        label = re.sub(r"[^\w.=@,-]", "_", label)
        if label in built:
            raise PrunerMisused(f"prune.methods names {label} twice: remove one, or give them different parameters")
        built[label] = build_pruner(method, classes)
    return built


def check_budgets(experiment: Experiment, patches: int) -> None:
    """Refuse budgets of more visual tokens than an image has (PrunerMisused, exit 2)."""
    too_large = [keep for keep in experiment.prune.budgets if keep > patches]
    if too_large:
        raise PrunerMisused(
            f"expected budgets of at most {patches} visual tokens, the number of patches of this store; "
            f"prune.budgets has {', '.join(map(str, too_large))}"
        )


def plan(
    experiment: Experiment, methods: Mapping[str, Pruner], patches: int, depth: int
) -> tuple[list[Cell], list[Unmet]]:
    """Every cell, in the order of the config: methods, then budgets, positions and seeds; and what cannot be met.

    `depth` is the number of the language model's layers.
    """
    section = experiment.prune
    cells: list[Cell] = []
    unmet: list[Unmet] = []
    for label, pruner in methods.items():
        fixed = pruner.budget == "fixed"
        places = _positions(section.positions, pruner)[: 1 if fixed else None]
        for budget in (0,) if fixed else tuple(dict.fromkeys(section.budgets)):
            try:
                schedule = _schedule(pruner, patches, depth, budget)
            except Infeasible as impossible:
                unmet.append(Unmet(label, budget, str(impossible)))
                continue
            keep = round(schedule.mean) if fixed else budget
            for positions in places:
                cells += _seeded(Cell(label, pruner, keep, positions, None, schedule), section.seeds)
    return cells, unmet


def _schedule(pruner: Pruner, patches: int, depth: int, budget: int) -> Schedule:
    if isinstance(pruner, InLLMPruner):
        return pruner.schedule(patches, depth, budget)
    return Schedule(depth, pruner.fixed_keep(patches) if pruner.budget == "fixed" else budget)


def _positions(asked: tuple[str, ...], pruner: Pruner) -> tuple[Positions, ...]:
    resolved = [pruner.positions if choice == "default" else choice for choice in asked]
    return tuple(dict.fromkeys(resolved))  # type: ignore[arg-type]


def _seeded(cell: Cell, seeds: int) -> list[Cell]:
    """The cell once per seed, from the pruner's own seed on; as it is, if the method is not randomised."""
    if not cell.pruner.randomised:
        return [cell]
    first: int = cell.pruner.parameters()["seed"]
    return [
        replace(cell, seed=seed, pruner=replace(cell.pruner, seed=seed))  # type: ignore[type-var]
        for seed in range(first, first + seeds)
    ]
