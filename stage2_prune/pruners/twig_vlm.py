"""A twig on an early layer says where the prompt's last token will look; few visual tokens pass it, and later none.

TwigVLM++ (branch `twigvlm++` of MILVLG/twigvlm at 8dc2d19), reimplemented from the description. Published: K = 2, a twig of 3
layers that begin as copies of layers K to K+2, a head, the losses NTP + 0.1 PredKL + 1.0 AttnKL (to layer 19), no visual token
from layer 24 on; in `train`, learning_rate 1e-4, one epoch, and no other divergence. What differs: the twig's layers stay the
model's, each with a trained adapter (copies are 0.6 B parameters at 7B); AttnKL's target is read in the pass that PredKL needs;
the head rotates queries and keys; no speculative decoding. The second stage has `policy_inside`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from configs.experiment import Match
from configs.published_layers import half_up, language_layer
from stage2_prune.modules.twig import Twig, answer_losses, attended, predict
from stage2_prune.pruning.practice import Practice
from stage2_prune.pruning.pruner import ModuleSpec
from stage2_prune.pruning.schedule import Schedule, Stage, fit
from stage2_prune.pruning.tokens import VisualTokens
from stage2_prune.pruning.trained_inside import Course, Taught, TrainedInside


@dataclass(frozen=True)
class TwigVlm(TrainedInside):
    """Keeps the visual tokens that the head looks at most before `layer`, and none from `wipe` on; a budget chooses how many.

    In training the model is unpruned, so that its own loss stays; the twig learns by the losses beside it.
    """

    losses: ClassVar[tuple[str, ...]] = ("ntp", "pred_kl", "attn_kl")

    layer: PositiveInt = 2
    """Layer before which tokens are dropped and out of which the twig grows, of 32."""
    twig: PositiveInt = 3
    """Layers of the twig, of 32."""
    wipe: PositiveInt = 24
    """Layer from which on no visual token is left, of 32; on a model so shallow that this is `layer`, they stay."""
    attended: PositiveInt = 19
    """Layer whose attention the head learns, of 32."""
    pred_kl: NonNegativeFloat = 0.1
    """Weight of the divergence of the twig's answers from the model's."""
    attn_kl: NonNegativeFloat = 1.0
    """Weight of the divergence of the head's attention from the model's."""
    rank: PositiveInt = 64
    """Width of the adapters."""

    @property
    def asks(self) -> bool:
        """Return that the question is read."""
        return True

    def schedule(self, patches: int, depth: int, keep: int | float, match: Match = "mean-tokens") -> Schedule:
        """Return the schedule of every token, then some, then none."""
        first, wipe = language_layer(self.layer, depth), language_layer(self.wipe, depth)

        def member(share: float) -> Schedule:
            some = min(max(half_up(patches * share), 1), patches - 1)
            stages = (Stage(first, some), Stage(wipe, 0))[: 1 + (wipe > first)]
            return Schedule(depth, patches, stages if first else ())

        return fit(keep, patches, depth, member, match)

    def scored_layers(self, depth: int) -> Sequence[int]:
        """Return `layer`."""
        return (language_layer(self.layer, depth),)

    def build(self, spec: ModuleSpec) -> nn.Module:
        """Build adapters and head."""
        return Twig(spec.embed, self.twig, self.rank)

    def teach(self, course: Course, tokens: VisualTokens, practice: Practice, schedule: Schedule) -> Taught:
        """Let the twig predict answers and attention, and the unpruned model say what they are."""
        course.reach(language_layer(self.layer, len(course.decoder.layers)))
        predicted, looked = predict(self.module, course)
        course.reach(language_layer(self.attended, len(course.decoder.layers)))
        attention = F.kl_div(looked, attended(course), reduction="none").sum(-1)
        logits = course.logits()
        entropy, divergence = answer_losses(predicted, course, logits)
        weighted = (entropy, self.pred_kl * divergence, self.attn_kl * attention)
        return Taught(logits, dict(zip(self.losses, weighted, strict=True)))
