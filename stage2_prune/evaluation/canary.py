"""Compare the layer loop with the stock model on one prompt, before anything is pruned inside the language model.

The layer loop (language/layer_loop.py) calls parts of transformers that may change in any version. So the loaded model
answers one prompt twice: as the stock model, and through a loop that drops nothing. docs/exactness.md says how long this takes.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from stage2_prune.errors import StockDiffers
from stage2_prune.evaluation.cells import Cell
from stage2_prune.language.assemble import ModelInputs, assemble
from stage2_prune.language.generate import Answers, generate
from stage2_prune.language.language import Language
from stage2_prune.language.layer_loop import PruningLanguage
from stage2_prune.pruning.in_llm import Drop, InLLMPruner, Site
from stage2_prune.session.ask import prepare
from stage2_prune.session.session import Session
from store.checkpoint.versions import remedy
from store.questions.question import Question

STEPS = 3
"""Number of generated tokens: the prompt is read once, then the cache is continued twice."""
RELATIVE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Allowed difference of logits on a GPU, by dtype, as a share of the largest logit. On a CPU no difference is allowed."""
_CHANGED_CALLS = (TypeError, AttributeError, ValueError, LookupError)
"""Errors that Python raises if a function or a result of another library has changed its form."""


@dataclass(frozen=True)
class KeepsAll:
    """A hook of the layer loop that is asked before every layer and drops nothing."""

    layers: Collection[int]

    def drop(self, site: Site) -> Drop:
        """Keep all visual tokens."""
        return Drop(torch.arange(site.visual, device=site.hidden.device))


def check_layer_loop(session: Session, cells: Iterable[Cell], asked: Sequence[Question]) -> None:
    """Compare the layer loop with the stock model on the first question, if any of the cells prunes inside the model.

    Raises:
        StockDiffers: (exit 4) if their answers differ.
        PrunerMisused: (exit 2) for a model that the loop does not know.
    """
    if not asked or not any(isinstance(cell.pruner, InLLMPruner) for cell in cells):
        return
    for batch in session.features.batches([asked[:1]]):
        prepared = prepare(session.language, batch.questions, session.experiment.data.post_prompt)
        patches = batch.projected.shape[1]
        index = torch.arange(patches)[None]
        compare_with_stock(
            session.language,
            assemble(session.language, prepared.prompts, batch.projected, index, patches, "original"),
        )


def compare_with_stock(language: Language, prompt: ModelInputs) -> None:
    """Answer a batch of one prompt as the stock model and through the layer loop; raise what `check_layer_loop` raises."""
    # A model may end its answer early, but never with an image: this end token lets it generate all STEPS tokens.
    unending = replace(language, eos_token_ids=(language.image_token_id,))
    looped = PruningLanguage(**vars(unending), hook=KeepsAll(range(1, language.depth)), positions="original")
    looped.answering(prompt.slots)  # refuse a model that the loop does not know
    stock = generate(unending, prompt, STEPS)
    try:
        own = generate(looped, prompt, STEPS)
    except _CHANGED_CALLS as error:
        message = " ".join(str(error).split())
        raise StockDiffers(
            f"expected the layer loop to answer through the layers of {type(language.model).__name__}, it ends in "
            f"{type(error).__name__} ({message:.200}); {remedy()}, or leave methods inside the language model out"
        ) from error
    difference = _difference(stock, own, language)
    if difference:
        raise StockDiffers(
            "expected the layer loop without drops to answer as the stock language model does, "
            f"{difference}; {remedy()}, or leave methods inside the language model out"
        )


def _difference(stock: Answers, own: Answers, language: Language) -> str | None:
    """Describe how two answers differ; None if they agree: bit for bit on a CPU, within rounding elsewhere."""
    if not stock.logits.isfinite().all():
        return None  # the model's own overflow, which is reported when questions are answered
    if not torch.equal(stock.tokens, own.tokens):
        return f"it says the tokens {own.tokens[0].tolist()}, the stock model {stock.tokens[0].tolist()}"
    if torch.equal(stock.logits, own.logits):
        return None
    largest = (stock.logits.double() - own.logits.double()).abs().max() / stock.logits.double().abs().max()
    if language.device.type != "cpu" and largest <= RELATIVE[language.dtype]:
        return None
    return f"the largest difference of its logits is {largest:.1e} of the largest logit"
