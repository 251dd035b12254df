"""Visual tokens that the question's words attend to beyond what their distance explains.

SparseVLM+ (the second version of SparseVLM), Gumpest/SparseVLMs, branch v2.0 at 9e1f649; reimplemented from the
formula. Reads what SparseVLM reads, and rotary positions; published counts for 64, 96, 128 and 192 tokens, original
positions, nothing recycled.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import PositiveFloat

from configs.experiment import Match
from configs.published_layers import half_up
from stage2_prune.pruners._sparse_vlm_counts import Published
from stage2_prune.pruners.sparse_vlm import raters
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule

COUNTS = {"64": (66, 34, 20), "96": (246, 54, 28), "128": (238, 108, 60), "192": (300, 200, 118)}
"""Visual tokens kept after layers 2, 6 and 15, by the nominal budget that the code gives them."""


@dataclass(frozen=True)
class SparseVlmPlus(InLLMPruner):
    """Top-k of the rater words' attention divided by that of rotary positions alone, over the heads that look most.

    A budget is met as in SparseVLM: on 32 layers and 576 patches the published counts average 81.81, 113.94, 144.12 and
    206.75 tokens, and `published:64` to `published:192` name them. Quirks: attention after its softmax is divided by a dot
    product before any (all queries and keys 1), which may be small or negative; the heads are chosen after that.
    """

    heads: PositiveFloat = 14 / 32
    """Share of the heads that count, those with the largest sum over rater words and visual tokens. The official code
    takes 14 heads of any model: this share of 32 heads, but 14 of 40 on a 13B model, where 0.35 is the official number.
    """

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Counts between the published ones."""
        return Published(COUNTS, patches, depth, recycle=False).fit(keep, match)

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The counts of the code for each of its nominal budgets."""
        return Published(COUNTS, patches, depth, recycle=False).schedules()

    def drop(self, site: Site, keep: int) -> Drop:
        """The tokens with the highest mean over raters and chosen heads."""
        rows = raters(site)
        cos, sin = site.cos.float(), site.sin.float()
        gravity = (cos[rows] @ cos[site.image].T + sin[rows] @ sin[site.image].T) / cos.shape[-1] ** 0.5
        weights = site.attention(rows)[..., site.image] / gravity
        count = min(max(half_up(self.heads * len(weights)), 1), len(weights))
        chosen = weights.sum((1, 2)).sort(descending=True, stable=True).indices[:count]
        return highest(weights[chosen].mean((0, 1)), keep)
