"""Greedy answers of the language model to an assembled batch."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import StoppingCriteriaList, StopStringCriteria

from stage2_prune.language.assemble import ModelInputs
from stage2_prune.language.language import Language
from store.checkpoint.generation import GREEDY


@dataclass(frozen=True)
class Answers:
    """The tokens of the answers, and the logits of each step."""

    tokens: Int[Tensor, "question step"]
    """New tokens only; behind the end of an answer stands padding."""
    logits: Float[Tensor, "question step vocab"]
    """Logits of each step; step 0 is the prompt's last position."""


@torch.no_grad()
def generate(language: Language, batch: ModelInputs, max_new_tokens: int) -> Answers:
    """Answer every question of the batch greedily, with `max_new_tokens` at most.

    The ids are passed beside the embeddings: the model reads the embeddings, the checkpoint's generation settings read the ids.
    The cache is asked for by name: generate() drops a mask without padding, and without mask *and* cache, gaps in the position
    ids would be read as packed sequences.
    """
    generated = language.answering(batch.slots).generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(language.eos_token_ids),
        pad_token_id=language.pad_token_id,
        **GREEDY,
        **_beginning(batch),
        **_for_prompts(language, batch),
    )
    return Answers(generated.sequences[:, batch.input_ids.shape[1] :], torch.stack(generated.logits, dim=1))


def _beginning(batch: ModelInputs) -> dict[str, Any]:
    """Return what generation begins with: the embeddings of the prompts, or a cache behind which the model embeds the ids."""
    begun = batch.begun(range(len(batch.input_ids)))
    return begun or {"inputs_embeds": batch.inputs_embeds}


def _for_prompts(language: Language, batch: ModelInputs) -> dict[str, Any]:
    """Return the settings of the checkpoint that need more than its file holds: the length before pruning, or a tokenizer."""
    own, arguments = language.generation, dict[str, Any]()
    if "min_length" in own and "min_new_tokens" not in own:  # min_length counts the prompt, as it was before pruning
        dropped = batch.unpruned - batch.input_ids.shape[1]
        arguments["min_length"] = max(0, own["min_length"] - dropped)
    if "stop_strings" in own:
        # Not given as `tokenizer=`: stock generation hands that on to the model, and the layer loop refuses unknown arguments.
        stop = StopStringCriteria(language.tokenizer, own["stop_strings"])
        arguments |= {"stop_strings": None, "stopping_criteria": StoppingCriteriaList([stop])}
    return arguments
