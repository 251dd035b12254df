"""Visual tokens that neither the text nor the other visual tokens attend to, a few after every layer.

FitPrune (Ye et al., "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
AAAI 2025), ywh187/FitPrune at 36bb116; reimplemented from the formula. Reads the attention of every layer, all rows
from the image on; the published delete counts were fitted on LLaVA-1.5-7B, and `python -m stage2_prune calibrate` fits
them to any model. Original positions.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from configs.experiment import Match
from stage2_prune.errors import PrunerMisused
from stage2_prune.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruners._fit_prune_tables import DELETES
from stage2_prune.schedule_budget import PUBLISHED_LAYERS, PUBLISHED_PATCHES, Schedule, between, fit, resolved, staged


@dataclass(frozen=True)
class FitPrune(InLLMPruner):
    """After each layer the lowest products of attention from the text and attention from the image are deleted.

    Both are sums over query rows of the largest weight of any head. A budget is met on the lines between the published
    schemes (245.0, 130.6 and 72.8 tokens at 60, 80 and 90 %), or from no token over `deletes` to all of them. The port
    in VLMUniPruneBench keeps the lowest instead.
    """

    deletes: tuple[NonNegativeInt, ...] | None = None
    """Tokens deleted after each layer of this very model, as `calibrate` prints them; default: the published schemes."""

    def schedule(self, patches: int, depth: int, keep: int, match: Match = "mean-tokens") -> Schedule:
        """Counts that fall as the schemes say."""
        if self.deletes is None:
            layers = resolved(range(1, PUBLISHED_LAYERS), depth)
            share = patches / PUBLISHED_PATCHES
            middle = [
                [count * share for count in _left(DELETES[scheme], PUBLISHED_PATCHES)] for scheme in sorted(DELETES)
            ]
        else:
            layers = tuple(range(1, depth))
            middle = [_left(self.deletes, patches)]
            if len(self.deletes) != depth or sum(self.deletes) > patches:
                raise PrunerMisused(
                    f"expected fit_prune's `deletes` to be {depth} counts, one per layer, that add up to at most {patches} "
                    f"patches, got {list(self.deletes)}: run `python -m stage2_prune calibrate` on this model"
                )
        tables = [[0.0] * len(layers), *middle[::-1], [float(patches)] * len(layers)]
        return fit(keep, patches, depth, lambda place: staged(patches, depth, layers, between(tables, place)), match)

    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` highest products."""
        text, image = masses(site)
        return highest(text * image, keep)


def masses(site: Site) -> tuple[Float[Tensor, " visual"], Float[Tensor, " visual"]]:
    """Attention that each visual token receives from the text behind the image, and from the visual tokens; means."""
    rows = torch.arange(site.start, len(site.hidden), device=site.hidden.device)
    weights = site.attention(rows).amax(0)[:, site.image]
    return weights[site.visual :].mean(0), weights[: site.visual].mean(0)


def _left(deletes: tuple[int, ...], patches: int) -> list[float]:
    """Visual tokens that enter each layer but the first."""
    return [float(patches - gone) for gone in accumulate(deletes[:-1])]
