"""The interface of a method with learned weights that drops visual tokens inside the language model.

In an evaluation the layer loop drops tokens, as with every method inside the model. In a training no token is dropped: at each
layer of the schedule every patch gets a share of its weight, through which the gradient reaches the method.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from stage2_prune.primitives.ranked import ranking_of
from stage2_prune.primitives.soft_topk import soft_share
from stage2_prune.primitives.top_k import ranking
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.pruner import TrainedPruner
from stage2_prune.pruning.schedule import Schedule
from stage2_prune.pruning.tokens import VisualTokens


@runtime_checkable
class Course(Protocol):
    """A forward pass in training, which a method takes layer by layer; stage2_prune/training/forward/layered.py runs it."""

    layer: int
    """The layer that runs next."""
    hidden: Float[Tensor, "image token embed"]
    """Hidden states that enter `layer`."""
    mask: Float[Tensor, "image 1 token token"]
    """What is added to attention scores from `layer` on."""
    rotary: tuple[Tensor, Tensor]
    """Cosines and sines of the tokens' rotary positions."""
    weights: Float[Tensor, "image patch"]
    """How much of each patch is left."""
    decoder: Any
    """The stock decoder, with its layers and its last norm."""

    @property
    def answers(self) -> Sequence[Int[Tensor, " _"]]:
        """Return the right token at each place where an image's answers are predicted."""
        ...

    def reach(self, layer: int) -> None:
        """Run the layers up to `layer`, which then runs next."""
        ...

    def sites(self) -> Sequence[Site]:
        """Return what a method sees of each image: the prompt of its question, of a method that `asks`; else what all its
        questions share, which ends with the image.
        """
        ...

    def weigh(self, share: Float[Tensor, "image patch"]) -> None:
        """Leave a share in [0, 1] of each patch's weight, from `layer` on."""
        ...

    def read(self, hidden: Float[Tensor, "image token embed"]) -> list[Float[Tensor, "_ vocab"]]:
        """Turn hidden states into float32 logits where each image's answers are predicted."""
        ...

    def logits(self) -> list[Float[Tensor, "_ vocab"]]:
        """Run the layers that are left, and return the logits of the answers."""
        ...


@dataclass(frozen=True)
class Decision:
    """What a method decides about the patches of several images before a layer, in training."""

    share: Float[Tensor, "image patch"]
    """The share of its weight that each patch keeps, in [0, 1]."""
    losses: Mapping[str, Float[Tensor, " image"]] = field(default_factory=dict[str, Tensor])
    """Further losses of each image, weighted already: those that the method's `losses` names."""


@dataclass(frozen=True)
class Taught:
    """What came of a forward pass in training."""

    logits: Sequence[Float[Tensor, "_ vocab"]]
    """Logits of each image's answers."""
    losses: Mapping[str, Float[Tensor, " image"]] = field(default_factory=dict[str, Tensor])
    """Further losses of each image: the sums over layers."""


@dataclass(frozen=True)
class TrainedInside(TrainedPruner, InLLMPruner, ABC):
    """A method whose learned module scores, before some layers, the visual tokens that are still present.

    A subclass implements `build`, `schedule`, `scored_layers` and, for its training, `decide`; or it overrides `teach`, where
    no decision is trained.
    """

    seed: NonNegativeInt = 0
    """Seed of the order in which equal scores are kept."""

    @property
    def asks(self) -> bool:
        """Return whether scores depend on the question; each question then has an image of its own in training."""
        return False

    @abstractmethod
    def scored_layers(self, depth: int) -> Sequence[int]:
        """Return the layers before which `score` may be called, in a model of `depth` layers, ascending; 0 is none of them."""

    def score(self, site: Site) -> Float[Tensor, " visual"]:
        """Score the visual tokens of a question in float32: by calling the module, unless overridden.

        It sees of `site` what enters the layer: hidden states, embeddings, rotary positions and the decoder. With a method that
        does not `ask`, training has no text behind the image. Gradients reach the module from here.
        """
        return self.module(site)

    def drop(self, site: Site, keep: int) -> Drop:
        """Keep the `keep` highest scores; which of equal scores at the cut stay is drawn from (seed, image)."""
        if keep == 0:
            return Drop(torch.empty(0, dtype=torch.long, device=site.hidden.device))
        scores = self.score(site)
        order = ranking(scores)
        if keep < site.visual and scores[order[keep - 1]] == scores[order[keep]]:
            order = ranking_of(scores[None], (fingerprint(site),), self.seed)[0]
        return Drop(order[:keep].sort().values)

    def soft(self, tokens: VisualTokens, keep: int) -> Float[Tensor, "image patch"]:
        """Return the weights with which patches enter the language model: 1, unless the method drops before it too."""
        return torch.ones(len(tokens.image_ids), tokens.patches, device=tokens.device)

    def policy_inside(self, course: Course) -> Float[Tensor, "image patch"]:
        """Return the differentiable scores of what enters the layer that runs next, by whose order tokens are kept."""
        with torch.autocast(course.hidden.device.type, enabled=False):  # scores are in float32, as in an evaluation
            return torch.stack([self.score(site) for site in course.sites()])

    def decide(
        self, scores: Float[Tensor, "image patch"], present: Float[Tensor, "image patch"], keep: int, practice: Practice
    ) -> Decision:  # fmt: skip
        """Decide in training which `keep` patches stay of those whose weights are `present`."""
        raise NotImplementedError(f"{type(self).__name__} trains no decision: it overrides `teach`")

    def teach(self, course: Course, tokens: VisualTokens, practice: Practice, schedule: Schedule) -> Taught:
        """Take a course as an evaluation with `schedule` would, but leave every patch a share of its weight."""
        losses = {name: torch.zeros(len(tokens.image_ids), device=tokens.device) for name in self.losses}
        if schedule.entering < tokens.patches:
            course.weigh(self.soft(tokens, schedule.entering))
        for stage in schedule.stages:
            course.reach(stage.layer)
            decision = self.decide(self.policy_inside(course), course.weights, stage.keep, practice)
            course.weigh(decision.share)
            losses = {name: losses[name] + decision.losses[name] for name in self.losses}
        return Taught(course.logits(), losses)


@dataclass(frozen=True)
class SoftInside(TrainedInside, ABC):
    """A method that is trained by a soft top-k at each layer's count, among what is left there."""

    temperature: PositiveFloat = 0.1
    """Softness of the top-k in training, in units of the score; towards 0 a training computes what an evaluation does."""

    def decide(
        self, scores: Float[Tensor, "image patch"], present: Float[Tensor, "image patch"], keep: int, practice: Practice
    ) -> Decision:  # fmt: skip
        """Leave every patch the share that the soft top-k gives it."""
        return Decision(soft_share(scores, present, keep, self.temperature))


def fingerprint(site: Site) -> str:
    """Name a question's image by the sha256 of its visual tokens as they entered the language model."""
    entered = len(site.embedded) - (len(site.hidden) - site.visual)
    image = site.embedded[site.start : site.start + entered].detach().cpu().contiguous()
    return hashlib.sha256(image.view(torch.uint8).numpy().tobytes()).hexdigest()
