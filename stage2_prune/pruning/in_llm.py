"""The interface of a method that drops visual tokens inside the language model, and what it is shown between two layers.

The layer loop (stage2_prune/language/layer_loop.py) calls `drop` once per question and stage. A question is shown without its
padding and without the answer behind it, so that a method cannot make one depend on its batch or on a candidate answer.
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
from stage2_prune.pruning.pruner import Budget, Place, Pruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.pruning.tokens import VisualTokens


@dataclass(frozen=True)
class Site:
    """One question between two layers: its text before the image, its visual tokens, its text after them."""

    layer: int
    """The layer that runs next; `layer - 1` has run on the same tokens."""
    start: int
    """Where the visual tokens begin: the length of the text before them."""
    visual: int
    """How many are left; they stand side by side."""
    hidden: Float[Tensor, "token embed"]
    """What enters `layer`."""
    before: Float[Tensor, "token embed"]
    """What entered `layer - 1`."""
    embedded: Float[Tensor, "prompt embed"]
    """What entered layer 0, with the visual tokens that were dropped since."""
    keys: Float[Tensor, "head token width"]
    """Cached keys of `layer - 1`, rotated; as many heads as the cache has."""
    cos: Float[Tensor, "token width"]
    """Cosines of the tokens' rotary positions."""
    sin: Float[Tensor, "token width"]
    """Sines of the tokens' rotary positions."""
    decoder: Any
    """The stock decoder: its layers and its last norm, whose calls are not typed."""

    @property
    def image(self) -> slice:
        """The visual tokens among all tokens."""
        return slice(self.start, self.start + self.visual)

    @property
    def text(self) -> Int[Tensor, " row"]:
        """Rows of the text after the image."""
        return torch.arange(self.start + self.visual, len(self.hidden), device=self.hidden.device)

    @property
    def last(self) -> Int[Tensor, "1"]:
        """The row of the prompt's last token."""
        return self.text[-1:]

    def attention(self, rows: Int[Tensor, " row"], ahead: bool = False) -> Float[Tensor, "attending row token"]:
        """Attention weights of some query rows in every head of the layer that ran, or that runs next (`ahead`).

        Computed in float32 from the cached keys, and never by a model in eager mode. Ahead there are no keys yet: they
        are projected from `hidden`.
        """
        module = self.decoder.layers[self.layer - (not ahead)].self_attn
        queries = self._rotated(module.q_proj, rows, ahead)
        everything = torch.arange(len(self.hidden), device=rows.device)
        keys = self._rotated(module.k_proj, everything, ahead) if ahead else self.keys
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        scores = queries.float() @ keys.float().transpose(-1, -2)
        scores.mul_(module.scaling).masked_fill_(everything > rows[:, None], -torch.inf)  # in place: it may be large
        return scores.softmax(-1)

    def _rotated(self, projection: Any, rows: Int[Tensor, " row"], ahead: bool) -> Float[Tensor, "head row width"]:
        entering = self.hidden if ahead else self.before
        layer = self.decoder.layers[self.layer - (not ahead)]
        projected = projection(layer.input_layernorm(entering[rows]))
        heads = projected.view(1, len(rows), -1, layer.self_attn.head_dim).transpose(1, 2)
        return rotate(heads, self.cos[rows], self.sin[rows])[0]


@dataclass(frozen=True)
class Drop:
    """What stays of a question's visual tokens."""

    index: Int[Tensor, " kept"]
    """Which of the `Site.visual` ones, ascending."""
    merged: Float[Tensor, "made embed"] | None = None
    """Hidden states of tokens that were made of the others; they stand behind those that stay."""


@runtime_checkable
class Hook(Protocol):
    """What the layer loop calls."""

    @property
    def layers(self) -> Collection[int]:
        """The layers before which `drop` is called; never layer 0."""
        ...

    def drop(self, site: Site) -> Drop:
        """What stays of one question's visual tokens; as many for every question of a batch."""
        ...


class InLLMPruner(Pruner, ABC):
    """A method whose tokens are dropped between layers of the language model, at counts that `schedule` fixes.

    Layers are parameters on the published scale of 32 layers, and rescaled on another depth.
    """

    place: ClassVar[Place] = "in_llm"
    budget: ClassVar[Budget] = "schedule"

    @abstractmethod
    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Integer counts per layer that meet `keep` visual tokens, by their mean or what else is to `match`.

        Raises Infeasible where the method has none.
        """

    def published(self, patches: int, depth: int) -> Mapping[str, Schedule]:
        """The schedules that the method's paper or code fixes, by the names that they have there; none by default.

        Counts and layers are rescaled to `patches` and `depth`.
        """
        return {}

    @abstractmethod
    def drop(self, site: Site, keep: int) -> Drop:
        """The `keep` visual tokens of one question that go on."""

    def select(self, tokens: VisualTokens, keep: int) -> Int[Tensor, "image {keep}"]:
        """What enters the language model: every patch, unless a combination selects before it."""
        assert keep == tokens.patches, "methods inside the language model start from all patches"
        return torch.arange(keep, device=tokens.device).expand(len(tokens.image_ids), -1)


def check_positions(schedule: Schedule, positions: Positions) -> None:
    """Infeasible where a schedule merges tokens that should keep their positions: those have none."""
    if positions == "original" and any(stage.merged for stage in schedule.stages):
        raise Infeasible("merged tokens have no original positions: set prune.positions to compact for this method")


def highest(scores: Float[Tensor, " visual"], keep: int) -> Drop:
    """The `keep` visual tokens with the highest scores, in raster order; of equals the first."""
    return Drop(top_k(scores[None].float(), keep)[0])


@dataclass(frozen=True)
class Scheduled:
    """A method on its schedule, as the layer loop calls it."""

    pruner: InLLMPruner
    schedule: Schedule

    @property
    def layers(self) -> Collection[int]:
        """The layers of the schedule."""
        return self.schedule.layers

    def drop(self, site: Site) -> Drop:
        """The method's drop at the schedule's count."""
        stage = self.schedule.at(site.layer)
        assert stage is not None, "called where the schedule says"
        drop = self.pruner.drop(site, stage.keep)
        made = 0 if drop.merged is None else len(drop.merged)
        assert (len(drop.index), made) == (stage.keep, stage.merged), f"{self.pruner} did not keep to its schedule"
        return drop


def rotate(heads: Float[Tensor, "1 head row width"], cos: Tensor, sin: Tensor) -> Float[Tensor, "1 head row width"]:
    """Rotary positions as Llama has them: the halves of a head are the two coordinates that are turned."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
