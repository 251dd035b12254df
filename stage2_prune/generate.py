"""Greedy answers of the language model to an assembled batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stage2_prune.assemble import Batch
from stage2_prune.language import Language


@dataclass(frozen=True)
class Answers:
    """What the model said, and what it weighed at each step."""

    tokens: Int[Tensor, "question step"]
    """New tokens only; after the end of an answer, padding."""
    logits: Float[Tensor, "question step vocab"]
    """Step 0 is the prompt's last position."""


@torch.no_grad()
def generate(language: Language, batch: Batch, max_new_tokens: int) -> Answers:
    """Answer every row of the batch greedily, `max_new_tokens` at most.

    The cache is asked for by name: generate() drops a mask without padding, and without mask *and* cache,
    gaps in the position ids would be read as packed sequences.
    """
    said = language.answering(batch.slots).generate(
        inputs_embeds=batch.inputs_embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(language.eos_token_ids),
        pad_token_id=language.pad_token_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return Answers(said.sequences, torch.stack(said.logits, dim=1))
