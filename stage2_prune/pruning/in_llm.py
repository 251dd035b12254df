"""The interface of a method that drops visual tokens inside the language model, and what the method sees between two layers.

The layer loop (stage2_prune/language/layer_loop.py) calls `drop` once per question and stage. The question comes without its
padding and without the answer that follows it, so that no decision can depend on the batch or on a candidate answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from configs.experiment import Match, Positions
from stage2_prune.errors import Infeasible
from stage2_prune.primitives.top_k import top_k
from stage2_prune.pruning.pruner import BudgetKind, Place, Pruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Site:
    """One question between two layers: its text before the image, its visual tokens, and its text after them."""

    layer: int
    """The layer that runs next; `layer - 1` has run on the same tokens."""
    start: int
    """Index of the first visual token, which is the length of the text before the image."""
    visual: int
    """Number of visual tokens that are left; they are contiguous."""
    hidden: Float[Tensor, "token embed"]
    """Hidden states that enter `layer`."""
    before: Float[Tensor, "token embed"]
    """Hidden states that entered `layer - 1`."""
    embedded: Float[Tensor, "prompt embed"]
    """Embeddings that entered layer 0, with the visual tokens that were dropped since."""
    keys: Float[Tensor, "head token width"]
    """Cached keys of `layer - 1`, already rotated; `head` counts the heads of the cache."""
    cos: Float[Tensor, "token width"]
    """Cosines of the tokens' rotary positions."""
    sin: Float[Tensor, "token width"]
    """Sines of the tokens' rotary positions."""
    decoder: Any
    """The stock decoder, with its layers and its last norm; stock calls are not typed."""

    @classmethod
    def entering(
        cls, layer: int, start: int, visual: int, hidden: Tensor, embedded: Tensor, rotary: tuple[Tensor, Tensor], decoder: Any
    ) -> "Site":  # fmt: skip
        """Return a question of which only what enters `layer` is at hand, and nothing of the layer that ran.

        `rotary` holds the cosines and sines of its tokens.
        """
        nothing = hidden.new_empty(0, *rotary[0].shape)
        return cls(layer, start, visual, hidden, hidden, embedded, nothing, *rotary, decoder=decoder)

    @property
    def image(self) -> slice:
        """Return where the visual tokens stand among all tokens."""
        return slice(self.start, self.start + self.visual)

    @property
    def text(self) -> Int[Tensor, " after"]:
        """Return the indices of the text tokens after the image."""
        return torch.arange(self.start + self.visual, len(self.hidden), device=self.hidden.device)

    @property
    def last(self) -> Int[Tensor, "1"]:
        """Return the index of the prompt's last token."""
        return self.text[-1:]

    def attention(self, rows: Int[Tensor, " query"], ahead: bool = False) -> Float[Tensor, "attending query token"]:
        """Compute the attention weights of the queries at token indices `rows`, in every head.

        The layer is the one that ran, or with `ahead` the one that runs next. Weights are computed in float32 from the cached
        keys; no model runs in eager mode. Ahead there are no cached keys yet, so keys are projected from `hidden`.
        """
        module = self.decoder.layers[self.layer - (not ahead)].self_attn
        queries = self._rotated(module.q_proj, rows, ahead)
        tokens = torch.arange(len(self.hidden), device=rows.device)
        keys = self._rotated(module.k_proj, tokens, ahead) if ahead else self.keys
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        scores = queries.float() @ keys.float().transpose(-1, -2)
        scores.mul_(module.scaling).masked_fill_(tokens > rows[:, None], -torch.inf)  # in place, as scores may be large
        return scores.softmax(-1)

    def _rotated(self, projection: Any, rows: Int[Tensor, " token"], ahead: bool) -> Float[Tensor, "head token width"]:
        """Project the tokens at indices `rows` as queries or keys, and rotate them to their positions."""
        entering = self.hidden if ahead else self.before
        layer = self.decoder.layers[self.layer - (not ahead)]
        projected = projection(layer.input_layernorm(entering[rows]))
        heads = projected.view(1, len(rows), -1, layer.self_attn.head_dim).transpose(1, 2)
        return rotate(heads, self.cos[rows], self.sin[rows])[0]


@dataclass(frozen=True)
class Drop:
    """A method's decision about a question's visual tokens: which of them stay, and what was made of the others."""

    index: Int[Tensor, " kept"]
    """Which of the `Site.visual` tokens stay, ascending."""
    merged: Float[Tensor, "made embed"] | None = None
    """Hidden states of tokens that were made of the dropped ones; they stand behind the tokens that stay."""


@runtime_checkable
class Hook(Protocol):
    """What the layer loop calls between two layers."""

    @property
    def layers(self) -> Collection[int]:
        """Return the layers before which `drop` is called; layer 0 is never among them."""
        ...

    def drop(self, site: Site) -> Drop:
        """Decide which of one question's visual tokens stay; the number is the same for every question of a batch."""
        ...


class InLLMPruner(Pruner, ABC):
    """A method that drops tokens between layers of the language model, at counts that `schedule` fixes.

    Layers are parameters on the published scale of 32 layers, and are rescaled to other depths.
    """

    place: ClassVar[Place] = "in_llm"
    budget: ClassVar[BudgetKind] = "schedule"

    @abstractmethod
    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return integer counts per layer that meet `keep` visual tokens, by their mean or by what else is to `match`.

        Raises Infeasible where the method has no such schedule.
        """

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """Return the schedules that the method's paper or code fixes, by the names that they have there; none by default.

        Counts and layers are rescaled to `patches` and `depth`.
        """
        return {}

    @abstractmethod
    def drop(self, site: Site, keep: int) -> Drop:
        """Choose the `keep` visual tokens of one question that go on."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """Return every patch as what enters the language model; a combination selects before it instead."""
        assert keep == tokens.patches, "methods inside the language model start from all patches"
        return torch.arange(keep, device=tokens.device).expand(len(tokens.image_ids), -1)


def check_positions(schedule: Schedule, positions: Positions) -> None:
    """Raise Infeasible where a schedule merges tokens and positions are `original`: merged tokens have no such positions."""
    if positions == "original" and any(stage.merged for stage in schedule.stages):
        raise Infeasible("merged tokens have no original positions: set prune.positions to compact for this method")


def highest(scores: Float[Tensor, " visual"], keep: int) -> Drop:
    """Keep the `keep` visual tokens with the highest scores, in raster order; of equal scores the first."""
    return Drop(top_k(scores[None].float(), keep)[0])


@dataclass(frozen=True)
class Scheduled:
    """A method bound to one schedule, in the form that the layer loop calls."""

    pruner: InLLMPruner
    schedule: Schedule

    @property
    def layers(self) -> Collection[int]:
        """Return the layers of the schedule."""
        return self.schedule.layers

    def drop(self, site: Site) -> Drop:
        """Return the method's drop at the schedule's count."""
        stage = self.schedule.at(site.layer)
        assert stage is not None, "called where the schedule says"
        drop = self.pruner.drop(site, stage.keep)
        made = 0 if drop.merged is None else len(drop.merged)
        assert (len(drop.index), made) == (stage.keep, stage.merged), f"{self.pruner} did not keep to its schedule"
        return drop


def rotate(heads: Float[Tensor, "1 head token width"], cos: Tensor, sin: Tensor) -> Float[Tensor, "1 head token width"]:
    """Apply rotary positions as Llama does: the halves of a head are the two coordinates that are turned."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
