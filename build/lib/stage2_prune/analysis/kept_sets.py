"""Methods that select from a store, opened without a language model: its text embeddings are all that is read of it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from configs.experiment import Experiment
from stage2_prune.analysis.kept import Kept, kept_of
from stage2_prune.errors import Infeasible, NotExtracted, NotTrained, PrunerMisused, WeightsMismatch
from stage2_prune.evaluation.cells import Cell, Unavailable, Unmet, available, check_budgets, plan
from stage2_prune.evaluation.evaluate import bind
from stage2_prune.find_family import open_embeddings
from stage2_prune.pruning.pruner import Pruner, TrainedPruner
from stage2_prune.session.features import FeatureBatch, Features
from stage2_prune.session.prune_batch import ABOUT_QUESTIONS, choose_batch
from stage2_prune.session.session import Session, open_features
from store.questions.question import Question
from store.reading.absent import how_to_add
from store.reading.reader import FeatureStore

IN_LLM = "drops tokens inside the language model: every patch enters it"
NO_WEIGHTS = "has no trained weights: run `make train` first"


@dataclass(frozen=True)
class Selection:
    """A store, and what can be asked to select from it."""

    session: Session
    """Its language model embeds questions and answers none."""
    methods: Mapping[str, Pruner]
    """Trained ones with their weights."""
    weights: Mapping[str, str]
    """Digests of those weights."""
    left_out: tuple[Unavailable, ...]
    """Methods that cannot be shown here, with the reason."""
    untrained: Mapping[str, str]
    """Those of them that lack nothing but trained weights, with what to do, by label."""

    @torch.no_grad()
    def cells(self, question: Question) -> tuple[list[Cell], list[Unmet]]:
        """Every method at every budget and seed, whatever the positions, which change nothing in what is kept; and those
        that cannot be had, tried on one question.
        """
        experiment, features = self.session.experiment, self.session.features
        check_budgets(experiment, features.patches)
        prune = experiment.prune.model_copy(update={"positions": ("default",)})
        once = experiment.model_copy(update={"prune": prune})
        cells, unmet = plan(once, self.methods, features.patches, depth=1)  # of a model in which none of them drops
        possible: list[Cell] = []
        for batch in features.batches([[question]]):
            for cell in cells:
                try:
                    self.kept(cell, batch)
                except (PrunerMisused, Infeasible) as refused:
                    one = Unmet(cell.label, cell.keep or 0, cell.positions, str(refused))
                    unmet += [] if one in unmet else [one]
                else:
                    possible.append(cell)
        return possible, unmet

    def kept(self, cell: Cell, batch: FeatureBatch) -> tuple[Kept, list[int]]:
        """What a cell keeps of a batch, and which row of that each question is about: methods that read the question have a
        row for each.
        """
        asked, chosen = choose_batch(cell.pruner, batch, cell.schedule.entering, self.session.reader)
        return kept_of(chosen, self.session.features.patches), asked.of_question.tolist()


def reads_question(pruner: Pruner) -> bool:
    """Whether it may keep other patches for another question."""
    return bool(pruner.reads & ABOUT_QUESTIONS)


def is_grid(features: Features) -> bool:
    """Whether tokens are patches and nothing else: a CLS row, or what a model's own code made, has no place in the image."""
    return features.store.plan.geometry.patch_grid is not None


def open_selection(experiment: Experiment, methods: Mapping[str, Pruner], also: Collection[str] = ()) -> Selection:
    """The configured store, for those of `methods` that can select from it; of the arrays `also` those that are there.

    Raises as `open_features`, and PrunerMisused where no method is left, NotTrained (exit 5) where all lack weights.
    """
    store = FeatureStore.open(experiment.store_location)
    usable, unavailable = available(methods, experiment.model)
    left_out = [*unavailable, *_left_out(usable, store)]
    names = {one.pruner for one in left_out}
    usable = {label: pruner for label, pruner in usable.items() if label not in names}
    needs = frozenset(name for name in also if name in store.arrays).union(*(one.needs for one in usable.values()))
    features = open_features(experiment, needs)
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
        why = "; ".join(f"{one.pruner} {one.reason}" for one in left_out)
        raise PrunerMisused(f"expected a method that selects before the language model, there is none: {why}")
    return Selection(session, bound, digests, tuple(left_out), untrained)


def _left_out(methods: Mapping[str, Pruner], store: FeatureStore) -> Iterator[Unavailable]:
    for label, pruner in methods.items():
        absent = sorted(pruner.needs - store.arrays.keys())
        if pruner.place == "in_llm":
            yield Unavailable(label, IN_LLM)
        elif absent:
            yield Unavailable(
                label, f"needs {','.join(absent)}, which the store lacks: {how_to_add(absent, store.plan)}"
            )
