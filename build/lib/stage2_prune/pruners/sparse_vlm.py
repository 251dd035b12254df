"""Visual tokens that the question's own words attend to, and a few clusters made of the best of the rest.

SparseVLM (Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML
2025), Gumpest/SparseVLMs, branch main at 26a5f48; reimplemented from the formula. Reads the embedded prompt (to choose
the words), and the attention and output of layers 2, 6 and 15 of 32; published counts for 64, 96, 128 and 192 tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Match, Positions
from stage2_prune.pruners._clusters import clusters
from stage2_prune.pruners._sparse_vlm_counts import Published, made, recycled
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruning.schedule import Schedule

COUNTS = {"64": (66, 30, 17), "96": (238, 48, 26), "128": (303, 110, 36), "192": (300, 200, 110)}
"""Visual tokens kept after layers 2, 6 and 15, by the nominal budget that the code gives them."""


@dataclass(frozen=True)
class SparseVlm(InLLMPruner):
    """Top-k of the attention of rater words, averaged over heads, after three layers; clusters of the rest recycled.

    A budget is met on the lines between the published counts. On 32 layers and 576 patches these average 82.25, 114.09,
    145.41 and 206.5 tokens with the recycled ones (79.19, 110.25, 140.81 and 202.75 without), not the nominal 64, 96, 128 and
    192: `published:64` and so on are the published schedules, and so are their true means as budgets. Quirks: the code
    breaks ties of densities by random noise, here the first token is denser; a prompt without a word above the mean has all
    its words as raters; the paper's adaptive counts are not in the code.
    """

    positions: ClassVar[Positions] = "compact"

    recycle: bool = True
    """Make clusters of the dropped tokens and keep those too."""

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Counts between the published ones; recycled tokens count."""
        return Published(COUNTS, patches, depth, self.recycle).fit(keep, match)

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The counts of the code for each of its nominal budgets."""
        return Published(COUNTS, patches, depth, self.recycle).schedules()

    def drop(self, site: Site, keep: int) -> Drop:
        """The tokens that the raters attend to most, and clusters of the rest's best three tenths."""
        scores = site.attention(raters(site)).mean((0, 1))[site.image]
        drop = highest(scores, keep)
        if not self.recycle:
            return drop
        rest = scores.index_fill(0, drop.index, -torch.inf).sort(descending=True, stable=True).indices
        best = rest[: recycled(site.visual - keep)]
        states = site.hidden[site.image][best]
        return Drop(drop.index, clusters(states.float(), made(site.visual - keep)).to(states.dtype))


def raters(site: Site) -> Int[Tensor, " row"]:
    """Rows of the words behind the image that patches are drawn to more than to the average word."""
    words = site.embedded[len(site.embedded) - len(site.text) :].float()
    patches: Float[Tensor, "patch embed"] = site.embedded[site.start : len(site.embedded) - len(words)].float()
    drawn = (patches @ words.T).softmax(-1).mean(0)
    chosen = site.text[drawn > drawn.mean()]
    return chosen if len(chosen) else site.text
