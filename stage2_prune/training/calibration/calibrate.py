"""Calibrate FitPrune: fit to a model, on a few questions, how many visual tokens to delete after each layer.

For a tolerance alpha, a visual token is deleted if it and all less attended tokens together receive at most alpha of the
attention that the text pays to the image in the unpruned model, and likewise of the attention that visual tokens pay each
other. The counts are means over questions, rounded down; alpha is bisected, to a hundredth, until they meet the budget.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Experiment
from configs.progress import ProgressBar
from stage2_prune.errors import Infeasible, PrunerMisused
from stage2_prune.evaluation.canary import compare_with_stock
from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import PruningLanguage
from stage2_prune.pruners.fit_prune import masses
from stage2_prune.pruning.in_llm import Drop, Site
from stage2_prune.session.ask import prepare
from stage2_prune.session.choose import choose
from stage2_prune.session.features import left_out
from stage2_prune.session.session import open_session

ALPHA_STEP = 0.01
"""How exactly the tolerance alpha is bisected."""
_log = logging.getLogger(__name__)


@dataclass
class Probe:
    """A hook of the layer loop that deletes as many tokens as `alpha` allows, and counts them after each layer."""

    layers: Collection[int]
    alpha: float
    unpruned: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Sums of both kinds of attention in the unpruned model, by the layer that follows."""
    deleted: dict[int, int] = field(default_factory=dict)
    """Number of tokens that were deleted, by the layer that follows."""

    def drop(self, site: Site) -> Drop:
        """Drop the tokens that both kinds of attention can spare; if `alpha` is 0, drop nothing and note the sums."""
        text, image = masses(site)
        if self.alpha == 0:
            self.unpruned[site.layer] = (float(text.sum()), float(image.sum()))
        sums = self.unpruned[site.layer]
        spare = spared(text, sums[0], self.alpha) & spared(image, sums[1], self.alpha)
        self.deleted[site.layer] = int(spare.sum())
        return Drop((~spare).nonzero()[:, 0])


def spared(mass: Float[Tensor, " visual"], unpruned: float, alpha: float) -> Tensor:
    """Mark the least attended tokens that can go so that at least 1 - alpha of the unpruned sum is left."""
    order = mass.sort(stable=True).indices
    left = mass.sum() - mass[order].cumsum(0)
    gone = order[left >= unpruned * (1 - alpha)] if alpha else order[:0]
    return torch.zeros_like(mass, dtype=torch.bool).index_fill(0, gone, True)


@torch.no_grad()
def calibrate(language: Language, questions: Sequence[ModelInputs], keep: int) -> list[int]:
    """Find how many tokens to delete after each layer, so that on average `keep` tokens enter a layer.

    Args:
        language: the language model.
        questions: assembled prompts, each a batch of one question.
        keep: the budget, in visual tokens.

    Raises:
        Infeasible: if no such counts meet the budget.
    """
    depth: int = language.model.config.num_hidden_layers
    patches = int(questions[0].slots.sum())
    progress = ProgressBar(questions, "calibrate", unit="questions")
    unpruned = [_probed(language, batch, 0.0, {}).unpruned for batch in progress]
    low, high = 0.0, 1.0
    best: list[int] | None = None
    while high - low > ALPHA_STEP:
        alpha = (low + high) / 2
        probes = [_probed(language, batch, alpha, sums) for batch, sums in zip(questions, unpruned, strict=True)]
        deletes = [sum(probe.deleted[layer] for probe in probes) // len(probes) for layer in range(1, depth)] + [0]
        if sum(patches - sum(deletes[:layer]) for layer in range(depth)) <= keep * depth:
            high, best = alpha, deletes
        else:
            low = alpha
    if best is None:
        raise Infeasible(
            f"deleting after each of {depth} layers cannot reach a mean of {keep} visual tokens, the first sees all "
            f"{patches}: calibrate at a larger budget"
        )
    return best


def run(experiment: Experiment, keep: int, limit: int) -> list[int]:
    """Calibrate on the first `limit` questions of the training split, from the store, to the budget `keep`."""
    chosen = choose(experiment, "train", limit)
    session = open_session(experiment, frozenset())
    patches = session.features.patches
    if keep > patches:
        raise PrunerMisused(
            f"--keep: expected at most {patches} visual tokens, the number of patches of this store, got {keep}: lower it"
        )
    asked, excluded = session.features.answerable(chosen)
    for sentence in left_out(question.reason for question in excluded):
        _log.warning("note: %s", sentence)
    index: Int[Tensor, "1 patch"] = torch.arange(patches)[None]
    batches: list[ModelInputs] = []
    for batch in session.features.batches([[question] for question in asked]):
        prompts = prepare(session.language, batch.questions, experiment.data.post_prompt).prompts
        batches.append(assemble(session.language, prompts, batch.projected, index, patches, "original"))
    compare_with_stock(session.language, batches[0])
    return calibrate(session.language, batches, keep)


def _probed(language: Language, batch: ModelInputs, alpha: float, unpruned: dict[int, tuple[float, float]]) -> Probe:
    probe = Probe(range(1, language.model.config.num_hidden_layers), alpha, dict(unpruned))
    model = PruningLanguage(**vars(language), hook=probe, positions="original").answering(batch.slots)
    model(inputs_embeds=batch.inputs_embeds, attention_mask=batch.attention_mask, position_ids=batch.position_ids)
    return probe
