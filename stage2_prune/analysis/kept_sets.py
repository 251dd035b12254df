"""Open the methods that select from a store, without the language model: only its text embeddings are read."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from configs.errors import TRAIN
from configs.experiment import Experiment
from stage2_prune.analysis.kept import KeptPatches, kept_of
from stage2_prune.errors import Infeasible, NotExtracted, NotTrained, PrunerMisused, WeightsMismatch
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet, available, check_budgets, plan
from stage2_prune.evaluation.opening import bind
from stage2_prune.find_family import open_embeddings
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import ABOUT_QUESTIONS, choose_batch
from stage2_prune.session.session import Session, open_features
from store.questions.question import Question
from store.reading.absent import how_to_add
from store.reading.reader import FeatureStore

IN_LLM = "drops tokens inside the language model: every patch enters it"
NO_WEIGHTS = f"has no trained weights: run {TRAIN} first"


@dataclass(frozen=True)
class SelectingMethods:
    """A store with the methods that can select from it."""

    session: Session
    """The opened store. The language model of this session only embeds questions; it cannot answer."""
    methods: Mapping[str, Pruner]
    """The methods by label; trained methods have their weights."""
    weights: Mapping[str, str]
    """Digests of the weights that methods use, by label."""
    left_out: tuple[Unavailable, ...]
    """Methods that cannot select from this store, each with the reason."""
    untrained: Mapping[str, str]
    """What to do for each method left out that lacks only trained weights, by label."""

    @torch.no_grad()
    def cells(self, question: Question) -> tuple[list[Cell], list[Unmet]]:
        """List a cell for every method, budget and seed, and try each cell on one question.

        Positions are not varied, because they do not change what is kept.

        Returns:
            The cells that work, and the budgets that a method cannot meet.
        """
        experiment, features = self.session.experiment, self.session.features
        check_budgets(experiment, features.patches)
        prune = experiment.prune.model_copy(update={"positions": ("default",)})
        once = experiment.model_copy(update={"prune": prune})
        cells, unmet = plan(once, self.methods, features.patches, depth=1)  # any depth: none of them drops in the model
        possible: list[Cell] = []
        for batch in features.batches([[question]]):
            for cell in cells:
                try:
                    self.kept(cell, batch)
                except (PrunerMisused, Infeasible) as refused:
                    budget = Unmet(cell.label, cell.keep or 0, cell.positions, str(refused))
                    unmet += [] if budget in unmet else [budget]
                else:
                    possible.append(cell)
        return possible, unmet

    def kept(self, cell: Cell, batch: FeatureBatch) -> tuple[KeptPatches, list[int]]:
        """Find what a cell keeps of a batch.

        Returns:
            The kept patches, and for each question its row in them. There is a row per image or, if the method reads the
            question, a row per question.
        """
        asked, chosen = choose_batch(cell.pruner, batch, cell.schedule.entering, self.session.reader)
        return kept_of(chosen, self.session.features.patches), asked.of_question.tolist()


def reads_question(pruner: Pruner) -> bool:
    """Tell whether a pruner may keep other patches for another question."""
    return bool(pruner.reads & ABOUT_QUESTIONS)


def is_grid(features: Features) -> bool:
    """Tell whether all tokens are patches. A CLS row, or a token that a model's own code made, has no place in the image."""
    return features.store.plan.geometry.patch_grid is not None


def open_selection(
    experiment: Experiment, methods: Mapping[str, Pruner], also: Collection[str] = ()
) -> SelectingMethods:
    """Open the configured store for those of `methods` that can select from it.

    Args:
        experiment: the config.
        methods: the pruners by label.
        also: names of arrays that the caller reads where the store has them.

    Raises:
        PrunerMisused: (exit 2) if no method can select from the store.
        NotTrained: (exit 5) if all methods lack weights.
        StoreMissing, StoreMismatch, CheckpointMissing: as `open_features` does.
    """
    features = open_features(experiment, (), optional=_needs(methods).union(also))
    usable, unavailable = available(methods, experiment.model)
    left_out = [*unavailable, *_left_out(usable, features.store)]
    names = {method.pruner for method in left_out}
    usable = {label: pruner for label, pruner in usable.items() if label not in names}
    features = features.reading(_needs(usable).union(also) & features.needs)
    session = Session(experiment, features, open_embeddings(experiment.model), reprojection=None, exact=True)
    bound: dict[str, Pruner] = {}
    digests: dict[str, str] = {}
    untrained: dict[str, str] = {}
    for label, pruner in usable.items():
        try:
            ready, digest = bind(session, {label: pruner})
        except NotTrained as error:
            named = isinstance(pruner, TrainedPruner) and pruner.weights is not None
            left_out.append(Unavailable(label, str(error) if named else NO_WEIGHTS))
            untrained[label] = str(error)
        except (NotExtracted, PrunerMisused, WeightsMismatch) as error:
            left_out.append(Unavailable(label, str(error)))
        else:
            bound |= ready
            digests |= digest
    if not bound and untrained.keys() == methods.keys():
        raise NotTrained("; ".join(untrained.values()))
    if not bound:
        reasons = "; ".join(f"{method.pruner} {method.reason}" for method in left_out)
        raise PrunerMisused(f"expected a method that selects before the language model, there is none: {reasons}")
    return SelectingMethods(session, bound, digests, tuple(left_out), untrained)


def _needs(methods: Mapping[str, Pruner]) -> frozenset[str]:
    return frozenset[str]().union(*(pruner.needs for pruner in methods.values()))


def _left_out(methods: Mapping[str, Pruner], store: FeatureStore) -> Iterator[Unavailable]:
    """Name the methods that prune inside the language model or read arrays that the store lacks."""
    for label, pruner in methods.items():
        absent = sorted(pruner.needs - store.arrays.keys())
        if pruner.place == "in_llm":
            yield Unavailable(label, IN_LLM)
        elif absent:
            yield Unavailable(
                label, f"needs {','.join(absent)}, which the store lacks: {how_to_add(absent, store.plan)}"
            )
