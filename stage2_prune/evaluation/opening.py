"""Open what an evaluation needs: the store, the model, and the cells with their pruners' weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.experiment import Experiment
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.evaluation.cells import (
    Cell,
    Unavailable,
    Unmet,
    available,
    check_budgets,
    configured_pruners,
    plan,
    require_budgets,
)
from stage2_prune.language.layer_loop import require_loop
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session import weights
from stage2_prune.session.session import Session, open_session


@dataclass(frozen=True)
class OpenedCells:
    """The cells of a config that can run, and what they are run with."""

    session: Session
    cells: list[Cell]
    digests: dict[str, str]
    """Digests of the weights that methods use, by label."""
    unmet: list[Unmet]
    """Budgets that their method cannot meet."""
    unavailable: list[Unavailable]
    """Methods that cannot run."""


def open_cells(experiment: Experiment, allow_foreign_device: bool) -> OpenedCells:
    """Open store and model, and plan every cell of the config.

    Raises Infeasible (exit 2) where no method can meet a budget, and what `open_session` and `bind` raise.
    """
    configured = configured_pruners(experiment)
    require_budgets(experiment, configured)
    methods, unavailable = available(configured, experiment.model)
    needs = frozenset[str]().union(*(pruner.needs for pruner in methods.values()))
    session = open_session(experiment, needs, allow_foreign_device)
    methods, unable = able_inside(session, methods)
    unavailable += unable
    check_budgets(experiment, session.features.patches)
    bound, digests = bind(session, methods)
    cells, unmet = plan(experiment, bound, session.features.patches, session.language.depth)
    if not cells:
        first: Unmet | Unavailable = [*unmet, *unavailable][0]
        raise Infeasible(f"expected a budget that a method can meet, none can: {first.pruner}, {first.reason}")
    return OpenedCells(session, cells, digests, unmet, unavailable)


def able_inside(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], list[Unavailable]]:
    """Set aside the methods that prune inside a language model whose layers the layer loop does not know.

    Returns:
        The methods that can run, and the others with the reason.
    """
    able, unable = dict(methods), list[Unavailable]()
    for label, pruner in methods.items():
        try:
            if pruner.place == "in_llm":
                require_loop(session.language.model.model)
        except PrunerMisused as unknown:
            del able[label]
            unable.append(Unavailable(label, str(unknown)))
    return able, unable


def bind(session: Session, methods: Mapping[str, Pruner]) -> tuple[dict[str, Pruner], dict[str, str]]:
    """Check that the store serves each pruner, and load the weights of trained pruners.

    Returns:
        The pruners by label, and the digests of the weights (trained ones and CLIP's) that methods use, by label.

    Raises:
        NotTrained: (exit 5) naming `make train` if weights are missing.
    """
    bound: dict[str, Pruner] = {}
    digests: dict[str, str] = {}
    for label, pruner in methods.items():
        session.features.check(label, pruner)
        if "clip_text" in pruner.reads:
            digests[label] = session.reader.clip_digest
        if isinstance(pruner, TrainedPruner):
            spec = session.features.spec(pruner, session.language.width)
            folder = weights.folder(session.experiment.run_dir, label, pruner)
            belongs_to = weights.belongings(session.features, pruner, session.language_digest)
            pruner, record = weights.load(pruner, label, spec, folder, belongs_to)
            pruner = pruner.with_module(pruner.module.to(session.features.device))
            digests[label] = record["sha256"]
        bound[label] = pruner
    return bound, digests
