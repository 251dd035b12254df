"""Visual tokens that the question's words attend to beyond what their distance explains.

SparseVLM+ (the second version of SparseVLM), Gumpest/SparseVLMs, branch v2.0 at 26a5f48; reimplemented from the
formula. Reads what SparseVLM reads, and rotary positions; published counts for 64, 96, 128 and 192 tokens, original
positions, nothing recycled.
"""

from dataclasses import dataclass

from pydantic import PositiveFloat

from configs.experiment import Match
from stage2_prune.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruners.sparse_vlm import between_published, raters
from stage2_prune.schedule_budget import Schedule

COUNTS = ((66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118))


@dataclass(frozen=True)
class SparseVlmPlus(InLLMPruner):
    """Top-k of the rater words' attention divided by that of rotary positions alone, over the heads that look most.

    A budget is met as in SparseVLM: the published counts average 81.8, 144.1 and 206.8 tokens. Quirks: attention after
    its softmax is divided by a dot product before any (all queries and keys 1), which may be small or negative; the
    heads are chosen after that.
    """

    heads: PositiveFloat = 14 / 32
    """Share of the heads that count, those with the largest sum over rater words and visual tokens."""

    def schedule(self, patches: int, depth: int, keep: int, match: Match = "mean-tokens") -> Schedule:
        """Counts between the published ones."""
        return between_published(COUNTS, patches, depth, keep, False, match)

    def drop(self, site: Site, keep: int) -> Drop:
        """The tokens with the highest mean over raters and chosen heads."""
        rows = raters(site)
        cos, sin = site.cos.float(), site.sin.float()
        gravity = (cos[rows] @ cos[site.image].T + sin[rows] @ sin[site.image].T) / cos.shape[-1] ** 0.5
        weights = site.attention(rows)[..., site.image] / gravity
        count = min(max(int(self.heads * len(weights) + 0.5), 1), len(weights))
        chosen = weights.sum((1, 2)).sort(descending=True, stable=True).indices[:count]
        return highest(weights[chosen].mean((0, 1)), keep)
