"""Prefill of a language model with fewer visual tokens, measured and as FLOPs predict it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.generate import generate
from stage2_prune.language.language import Language
from stage2_prune.language.price import CONVENTIONS, LanguageShape, shape_of
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
    products: float
    """Share of its own prediction that the layers' matrix products alone reach, on as many rows: the kernels' part in it."""

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
        runs |= {f"products {keep}": _products(model, batch.inputs_embeds.shape[:2]) for keep, batch in batches.items()}
        took = bench.medians(runs, scale.rounds)
        every = flops(shape, scale, [scale.patches] * shape.layers)
        for keep, batch in batches.items():
            faster = took[f"{scale.patches}"] / took[f"{keep}"]
            predicted = every / flops(shape, scale, [keep] * shape.layers)
            rows = (scale.patches + BEFORE + AFTER) / batch.inputs_embeds.shape[1]
            products = took[f"products {scale.patches}"] / took[f"products {keep}"] / rows
            found.append(Prefill(questions, keep, 1000 * took[f"{keep}"] / questions, faster, predicted, products))
    return found


def _products(model: Language, rows: torch.Size) -> Callable[[], object]:
    """Every weight matrix of every layer, once, on so many questions and tokens."""
    matrices = [
        one for layer in model.model.model.layers for one in layer.modules() if isinstance(one, torch.nn.Linear)
    ]
    entering = {
        width: torch.randn(*rows, width, device=model.device) for width in {one.in_features for one in matrices}
    }
    return lambda: [one(entering[one.in_features]) for one in matrices]


def flops(shape: LanguageShape, scale: Scale, tokens_per_layer: Sequence[int]) -> int:
    """Of one prompt: the layers on visual and text tokens, and the head on the last one, as generate() calls it."""
    head = 2 * shape.width * scale.vocabulary
    return CONVENTIONS["flops_all"].count(shape, tokens_per_layer, BEFORE + AFTER) + head


def with_patches(model: Language, scale: Scale, questions: int, keep: int) -> ModelInputs:
    """Prompts with an even sample of `keep` patches each, at their original positions."""
    index = torch.arange(keep).expand(questions, -1) * scale.patches // keep
    visual = torch.randn(questions, keep, model.width, generator=torch.Generator().manual_seed(0)).to(model.device)
    return assemble(model, prompts(scale, questions), visual, index, scale.patches, "original")
