"""Compute what questions about one image share once: the text before the image and the visual tokens.

    | padding | before | visual tokens |     one row per prefix, prefilled once
    | padding | after |                      one row per question, which goes on from a copy of its prefix's cache

This is valid for methods that do not look at the question. Logits differ from those of whole prompts in their last bits, because
the shapes of the calls differ; so results made in this way are marked `exact: false`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.language.assemble import ModelInputs, fill, gather_kept, lay_out, left_padded
from stage2_prune.language.cache_argument import CACHE
from stage2_prune.language.language import Language
from stage2_prune.pruning.tokens import Pruned
from store.checkpoint.text import Prompt


@dataclass(frozen=True)
class Prefixes:
    """The prefilled prefixes of a batch."""

    inputs: ModelInputs
    """One row per prefix."""
    cache: Any
    """The key-value cache of these rows, a transformers `Cache`; it is copied for use and never written to."""
    of_question: Int[Tensor, " question"]
    """The prefix of each question."""
    next_position: Int[Tensor, " prefix"]
    """The position of the first token behind each image."""

    def cache_of(self, rows: Int[Tensor, " row"]) -> Any:
        """Copy the cache of some prefixes, each as often as `rows` names it."""
        copied = copy.copy(self.cache)
        copied.layers = [copy.copy(layer) for layer in self.cache.layers]
        copied.batch_select_indices(rows)
        return copied


@torch.no_grad()
def prefill_prefixes(
    language: Language,
    prompts: Sequence[Prompt],
    of_question: Sequence[int],
    projected: Tensor,
    pruned: Pruned,
    positions: Positions,
) -> Prefixes:
    """Prefill each distinct prefix of a batch: an image, and the text before it.

    Args:
        language: the language model.
        prompts: the prompts of the questions.
        of_question: for each question, the index of its image.
        projected: the projected features of the images, (image, patch, embed).
        pruned: the visual tokens that a method leaves of each image.
        positions: the RoPE positions of kept tokens.
    """
    keys = [(image, prompt.before) for image, prompt in zip(of_question, prompts, strict=True)]
    rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    images = torch.tensor([image for image, _ in rows], device=projected.device)
    before = [Prompt(before, ()) for _, before in rows]
    visual, patches = gather_kept(projected, pruned)[images], projected.shape[1]
    index = None if pruned.index is None else pruned.index[images]
    kept = [visual.shape[1]] * len(rows) if pruned.counts is None else pruned.counts[images].tolist()
    inputs = fill(language, lay_out(language, before, kept, index, patches, positions), visual)
    cache = language.model(
        inputs_embeds=inputs.inputs_embeds,
        attention_mask=inputs.attention_mask,
        position_ids=inputs.position_ids,
        use_cache=True,
        logits_to_keep=1,
    )[CACHE]
    ends = [
        len(p.before) + (patches if positions == "original" else count) for p, count in zip(before, kept, strict=True)
    ]
    device = language.device
    return Prefixes(
        inputs, cache, torch.tensor([rows[key] for key in keys], device=device), torch.tensor(ends, device=device)
    )


def continue_prompts(language: Language, prompts: Sequence[Prompt], prefixes: Prefixes) -> ModelInputs:
    """Make the whole prompts of a batch: prefixes, padding, and the text behind the image.

    The embeddings are left empty: the part behind the prefix is text, which the model embeds itself.
    """
    prefix, device = prefixes.inputs, language.device
    after = left_padded([prompt.after for prompt in prompts], language.pad_token_id).to(device)
    mask = left_padded([[1] * len(prompt.after) for prompt in prompts], 0).to(device)
    steps = left_padded([range(len(prompt.after)) for prompt in prompts], 0).to(device)
    positions = (prefixes.next_position[prefixes.of_question, None] + steps) * mask
    rows = prefixes.of_question
    longest = max(len(prompt.before) + len(prompt.after) for prompt in prompts)
    visual = prefix.unpruned - max(len(prompt.before) for prompt in prompts)
    return ModelInputs(
        torch.cat([prefix.input_ids[rows], after], 1),
        prefix.inputs_embeds[:0],
        torch.cat([prefix.attention_mask[rows], mask], 1),
        torch.cat([prefix.position_ids[rows], positions], 1),
        torch.cat([prefix.slots[rows], torch.zeros_like(mask, dtype=torch.bool)], 1),
        longest + visual,
    )
