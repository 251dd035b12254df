"""Visual tokens that the question's own words attend to, and a few clusters made of the best of the rest.

SparseVLM (Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML
2025), Gumpest/SparseVLMs, branch main at 26a5f48; reimplemented from the formula. Reads the embedded prompt (to choose
the words), and the attention and output of layers 2, 6 and 15 of 32; published counts for 64, 96, 128 and 192 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Match, Positions
from stage2_prune.in_llm import Drop, InLLMPruner, Site, highest
from stage2_prune.pruners._clusters import clusters
from stage2_prune.schedule_budget import PUBLISHED_PATCHES, Schedule, between, fit, resolved, staged

COUNTS = ((66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110))


@dataclass(frozen=True)
class SparseVlm(InLLMPruner):
    """Top-k of the attention of rater words, averaged over heads, after three layers; clusters of the rest recycled.

    A budget is met between the published counts, which are exactly met at their true means: 79.2, 140.8 and 202.8
    tokens, or 82.3, 145.4 and 206.5 with the recycled ones, not the nominal 64, 128 and 192. Quirks: the code breaks ties
    of densities by random noise, here the first token is denser; a prompt without a word above the mean has all its words as
    raters; the paper's adaptive counts are not in the code.
    """

    positions: ClassVar[Positions] = "compact"

    recycle: bool = True
    """Make clusters of the dropped tokens and keep those too."""

    def schedule(self, patches: int, depth: int, keep: int, match: Match = "mean-tokens") -> Schedule:
        """Counts between the published ones; recycled tokens count."""
        return between_published(COUNTS, patches, depth, keep, self.recycle, match)

    def drop(self, site: Site, keep: int) -> Drop:
        """The tokens that the raters attend to most, and clusters of the rest's best three tenths."""
        scores = site.attention(raters(site)).mean((0, 1))[site.image]
        drop = highest(scores, keep)
        if not self.recycle:
            return drop
        rest = scores.index_fill(0, drop.index, -torch.inf).sort(descending=True, stable=True).indices
        best = rest[: _recycled(site.visual - keep)]
        states = site.hidden[site.image][best]
        return Drop(drop.index, clusters(states.float(), _made(site.visual - keep)).to(states.dtype))


def raters(site: Site) -> Int[Tensor, " row"]:
    """Rows of the words behind the image that patches are drawn to more than to the average word."""
    words = site.embedded[len(site.embedded) - len(site.text) :].float()
    patches: Float[Tensor, "patch embed"] = site.embedded[site.start : len(site.embedded) - len(words)].float()
    drawn = (patches @ words.T).softmax(-1).mean(0)
    chosen = site.text[drawn > drawn.mean()]
    return chosen if len(chosen) else site.text


def between_published(
    counts: Sequence[Sequence[int]], patches: int, depth: int, keep: int, recycle: bool, match: Match
) -> Schedule:
    """A schedule on the lines between published counts, from no token to all of them."""
    layers = resolved([3, 7, 16], depth)  # the first that see fewer: tokens go after layers 2, 6 and 15
    ends = ([0] * len(layers), [PUBLISHED_PATCHES] * len(layers))
    tables = [[count * patches / PUBLISHED_PATCHES for count in row] for row in (ends[0], *counts, ends[1])]
    made = _made if recycle else (lambda dropped: 0)
    return fit(keep, patches, depth, lambda place: staged(patches, depth, layers, between(tables, place), made), match)


def _recycled(dropped: int) -> int:
    """Dropped tokens that go into clusters."""
    return int(0.3 * dropped) + 1


def _made(dropped: int) -> int:
    """Clusters that are made of them."""
    return _recycled(dropped) // 10 + 1
