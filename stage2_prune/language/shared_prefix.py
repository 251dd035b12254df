"""Read what stands before a question once for all questions about an image: system prompt and visual tokens.

    prefix of an image, read once | padding | question | answer

Every question continues from a copy of its image's keys and values. So a question is answered as if it were asked alone, up
to the last bits: a matrix product over another number of rows may round otherwise. This is valid for pruners that do not
look at the question.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from configs.experiment import Positions
from stage2_prune.language.assemble import ModelInputs, fill, lay_out
from stage2_prune.language.language import Language
from store.checkpoint.text import Prompt


@dataclass(frozen=True)
class PrefixedInputs(ModelInputs):
    """Prompts whose beginning was read before: ids, mask and positions of the whole prompt, embeddings of the question only."""

    prefixes: DynamicCache
    """Keys and values of the distinct prefixes; never written to."""
    of_question: Int[Tensor, " question"]
    """For each question, the index of its prefix."""

    @property
    def read(self) -> int:
        """Return the length of the prefixes."""
        return self.input_ids.shape[1] - self.inputs_embeds.shape[1]

    def begun(self, questions: Sequence[int]) -> dict[str, Any]:
        """Return a cache of its own for some of the questions, a row each, by the name that transformers gives it."""
        from stage2_prune.language.cache_argument import (
            CACHE,  # here, as it takes a second that other commands can do without
        )

        return {CACHE: copied(self.prefixes, self.of_question[list(questions)])}


def copied(prefixes: DynamicCache, rows: Int[Tensor, " question"]) -> DynamicCache:
    """Copy some rows of a cache, a row each time that it is named; only the copy is appended to."""
    cache = copy.copy(prefixes)
    cache.layers = [copy.copy(layer) for layer in prefixes.layers]
    cache.batch_select_indices(rows)  # makes tensors of its own
    return cache


def share_prefixes(
    language: Language,
    prompts: Sequence[Prompt],
    of_question: Sequence[int],
    visual: Float[Tensor, "image most embed"],
    index: Int[Tensor, "image most"] | None,
    patches: int,
    positions: Positions,
    kept: Sequence[int] | None = None,
) -> PrefixedInputs:
    """Read each image's prefix once, and lay out the questions behind it; the arguments are those of `assemble`, by image.

    Args:
        language: the language model, which prunes nothing itself.
        prompts: the prompt of each question.
        of_question: for each question, the index of its image.
        visual: the visual tokens of each image, padded behind where an image keeps fewer.
        index: the patches that the visual tokens come from; None where a method merged.
        patches: the number of patches of an image.
        positions: the kind of positions.
        kept: the number of visual tokens of each image; default: all that `visual` has.
    """
    counts = [visual.shape[1]] * len(visual) if kept is None else list(kept)
    beginnings = [(prompt.before, image) for prompt, image in zip(prompts, of_question, strict=True)]
    distinct = {beginning: number for number, beginning in enumerate(dict.fromkeys(beginnings))}
    images = [image for _, image in distinct]
    layout = lay_out(
        language,
        [Prompt(before, ()) for before, _ in distinct],
        [counts[image] for image in images],
        None if index is None else index[images],
        patches,
        positions,
    )
    prefix = fill(language, layout, visual[images])
    own = torch.tensor([distinct[beginning] for beginning in beginnings], device=language.device)
    ends = [len(before) + (patches if positions == "original" else counts[image]) for before, image in beginnings]
    unpruned = max(len(prompt.before) + patches + len(prompt.after) for prompt in prompts)
    return _behind(language, replace(prefix, unpruned=unpruned), own, prompts, ends)


def read_prefix(language: Language, prefix: ModelInputs) -> DynamicCache:
    """Run the prefixes through the language model, and return their keys and values."""
    from stage2_prune.language.cache_argument import CACHE

    cache = DynamicCache(config=language.model.config)
    with torch.no_grad():
        language.model(
            inputs_embeds=prefix.inputs_embeds,
            attention_mask=prefix.attention_mask,
            position_ids=prefix.position_ids,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )
    return cache


def _behind(
    language: Language,
    prefix: ModelInputs,
    own: Int[Tensor, " question"],
    prompts: Sequence[Prompt],
    ends: Sequence[int],
) -> PrefixedInputs:
    """Lay the questions out behind their prefixes, padded on the left; `ends` are the positions at which images end."""
    text = lay_out(language, [Prompt((), prompt.after) for prompt in prompts], [0] * len(prompts), None, 0, "compact")
    position_ids = text.position_ids + torch.tensor(ends)[:, None] * text.attention_mask
    parts = (text.input_ids, text.attention_mask, position_ids, text.slots)
    ids, mask, position_ids, slots = (part.to(language.device) for part in parts)
    return PrefixedInputs(
        torch.cat([prefix.input_ids[own], ids], 1),
        language.embed(ids),
        torch.cat([prefix.attention_mask[own], mask], 1),
        torch.cat([prefix.position_ids[own], position_ids], 1),
        torch.cat([prefix.slots[own], slots], 1),
        prefix.unpruned,
        read_prefix(language, prefix),
        own,
    )
