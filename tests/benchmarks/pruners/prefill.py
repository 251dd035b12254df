"""Prefill of a language model with fewer visual tokens, measured and as FLOPs predict it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stage2_prune.assemble import Batch, assemble
from stage2_prune.budget import CONVENTIONS, LanguageShape, shape_of
from stage2_prune.generate import generate
from stage2_prune.language import Language
from tests.benchmarks.pruners.inputs import AFTER, BEFORE, Scale, language, prompts
from tests.benchmarks.pruners.timing import Bench


@dataclass(frozen=True)
class Prefill:
    """Prompts with so many visual tokens against prompts with all of them, up to the first token of the answer."""

    questions: int
    """Of the batch."""
    visual_tokens: int
    milliseconds: float
    """Per question."""
    measured: float
    """How many times as fast as the unpruned prompts."""
    predicted: float
    """The same by FLOPs: text tokens and the head at the prompt's last token included."""

    @property
    def reached(self) -> float:
        """Share of the prediction."""
        return self.measured / self.predicted


@torch.no_grad()
def prefills(scale: Scale, bench: Bench) -> list[Prefill]:
    """What physically shorter prompts save in `generate`, which is what evaluations call."""
    model = language(scale, bench.device)
    shape = shape_of(model)
    found: list[Prefill] = []
    for questions in scale.questions:
        budgets = (scale.patches, *scale.prefill_budgets)
        batches = {keep: with_patches(model, scale, questions, keep) for keep in budgets}
        runs = {f"{keep}": lambda batch=batch: generate(model, batch, 1) for keep, batch in batches.items()}
        took = bench.medians(runs, scale.rounds)
        for keep in batches:
            seconds, every = took[f"{keep}"], flops(shape, scale, [scale.patches] * shape.layers)
            predicted = every / flops(shape, scale, [keep] * shape.layers)
            measured = took[f"{scale.patches}"] / seconds
            found.append(Prefill(questions, keep, 1000 * seconds / questions, measured, predicted))
    return found


def flops(shape: LanguageShape, scale: Scale, tokens_per_layer: Sequence[int]) -> int:
    """Of one prompt: the layers on visual and text tokens, and the head on the last one, as generate() calls it."""
    head = 2 * shape.width * scale.vocabulary
    return CONVENTIONS["flops_all"].count(shape, tokens_per_layer, BEFORE + AFTER) + head


def with_patches(model: Language, scale: Scale, questions: int, keep: int) -> Batch:
    """Prompts with an even sample of `keep` patches each, at their original positions."""
    index = torch.arange(keep).expand(questions, -1) * scale.patches // keep
    visual = torch.randn(questions, keep, model.width, generator=torch.Generator().manual_seed(0)).to(model.device)
    return assemble(model, prompts(scale, questions), visual, index, scale.patches, "original")
