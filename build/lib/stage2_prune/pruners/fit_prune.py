"""Visual tokens that neither the text nor the other visual tokens attend to, a few after every layer.

FitPrune (Ye et al., "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
AAAI 2025), ywh187/FitPrune at 36bb116; reimplemented from the formula. Reads the attention of every layer, all rows
from the image on; the published delete counts were fitted on LLaVA-1.5-7B, and `python -m stage2_prune calibrate` fits
them to any model. Original positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from configs.experiment import Match
from configs.published_layers import LANGUAGE_LAYERS, language_layers
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruners._fit_prune_tables import left, published_schemes
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule, between, fit, staged


@dataclass(frozen=True)
class FitPrune(InLLMPruner):
    """After each layer the lowest products of attention from the text and attention from the image are deleted.

    Both are sums over query rows of the largest weight of any head. A budget is met on the lines between the published
    schemes, or from no token over `deletes` to all of them. `published:60%` is the scheme that saves 60 % of the FLOPs
    (244.97 tokens on 32 layers and 576 patches; 130.59 at 80 %, 72.84 at 90 %); there are 10 to 90 % and 55 %. The port in
    VLMUniPruneBench keeps the lowest instead.
    """

    deletes: tuple[NonNegativeInt, ...] | None = None
    """Tokens deleted after each layer of this very model, as `calibrate` prints them; default: the published schemes."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Counts that fall as the schemes say."""
        if self.deletes is None:
            layers, schemes = (
                language_layers(range(1, LANGUAGE_LAYERS), depth),
                list(published_schemes(patches).values()),
            )
        else:
            layers, schemes = tuple(range(1, depth)), [left(self._checked(self.deletes, patches, depth), patches)]
        tables = [[0.0] * len(layers), *schemes, [float(patches)] * len(layers)]
        places = [number / (len(tables) - 1) for number in range(1, len(tables) - 1)]
        return fit(
            keep, patches, depth, lambda place: staged(patches, depth, layers, between(tables, place)), match, places
        )

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The published schemes, by the percentage of FLOPs that they save; none where `deletes` are of another model."""
        if self.deletes is not None:
            return {}
        layers = language_layers(range(1, LANGUAGE_LAYERS), depth)
        return {name: staged(patches, depth, layers, counts) for name, counts in published_schemes(patches).items()}

    def _checked(self, deletes: tuple[int, ...], patches: int, depth: int) -> tuple[int, ...]:
        if len(deletes) == depth and sum(deletes) <= patches:
            return deletes
        raise PrunerMisused(
            f"expected fit_prune's `deletes` to be {depth} counts, one per layer, that add up to at most {patches} "
            f"patches, got {list(deletes)}: run `python -m stage2_prune calibrate` on this model"
        )

    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` highest products."""
        text, image = masses(site)
        return highest(text * image, keep)


def masses(site: Site) -> tuple[Float[Tensor, " visual"], Float[Tensor, " visual"]]:
    """Attention that each visual token receives from the text behind the image, and from the visual tokens; means."""
    rows = torch.arange(site.start, len(site.hidden), device=site.hidden.device)
    weights = site.attention(rows).amax(0)[:, site.image]
    return weights[site.visual :].mean(0), weights[: site.visual].mean(0)
