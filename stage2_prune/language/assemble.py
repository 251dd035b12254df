"""Assemble prompts and visual tokens into a batch: the one code path of evaluation and of every parity mode.

Batches differ only in where the (question, kept, embed) tensor comes from; ids, padding, mask and positions are made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.language import Language
from stage2_prune.pruning.tokens import Pruned
from store.checkpoint.text import Prompt, TextSide


@dataclass(frozen=True)
class PromptLayout:
    """Where every token of a batch stands, before anything is embedded; questions are padded on the left."""

    input_ids: Int[Tensor, "question token"]
    """Token ids, with one image placeholder per kept visual token: a full model needs as many features."""
    slots: Bool[Tensor, "question token"]
    """Which of the ids are placeholders."""
    attention_mask: Int[Tensor, "question token"]
    """Always explicit: without a mask, gaps in `position_ids` are silently read as packed sequences."""
    position_ids: Int[Tensor, "question token"]
    unpruned: int
    """Tokens that the longest question of the batch would have with every visual token."""


@dataclass(frozen=True)
class ModelInputs:
    """The arguments of one call of the language model."""

    input_ids: Int[Tensor, "question token"]
    """The ids that a full model would be called with: see `Layout`. Generation reads them beside the embeddings."""
    inputs_embeds: Float[Tensor, "question unread embed"]
    """Embeddings of each prompt from token `read` on."""
    attention_mask: Int[Tensor, "question token"]
    position_ids: Int[Tensor, "question token"]
    slots: Bool[Tensor, "question token"]
    """Where the visual tokens stand."""
    unpruned: int
    """As in `PromptLayout`."""

    @property
    def read(self) -> int:
        """Return how many tokens of each prompt stand before `inputs_embeds`, as a cache holds them: none here."""
        return 0

    def begun(self, questions: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of a call that hold what stands before `inputs_embeds`, for some of the questions."""
        return {}


def gather_kept(projected: Float[Tensor, "image patch embed"], pruned: Pruned) -> Float[Tensor, "image kept embed"]:
    """Return the features of the visual tokens that go on.

    All patches were projected before this selection. If `pruned` holds a merge, its `tokens` must have been made before.
    """
    if pruned.tokens is not None:
        return pruned.tokens
    assert pruned.index is not None and pruned.merge is None
    return projected.gather(1, pruned.index[..., None].expand(-1, -1, projected.shape[-1]))


def lay_out(
    text: TextSide,
    prompts: Sequence[Prompt],
    kept: Sequence[int],
    index: Int[Tensor, "question most"] | None,
    patches: int,
    positions: Positions,
) -> PromptLayout:
    """Make ids, mask and positions of a batch of questions, each with its own number `kept` of visual tokens; on the CPU.

    `index` names the patches that the visual tokens come from, padded behind where a question keeps fewer, or is None where a
    method merged. With `original` positions a kept patch keeps the position that it has among all `patches`, and so does the
    text after it; with `compact` positions are consecutive.
    """
    if positions == "original" and index is None:
        raise PrunerMisused("merged tokens have no original positions: set prune.positions to compact for this method")
    pairs = list(zip(prompts, kept, strict=True))
    sequences = [[*p.before, *[text.image_token_id] * count, *p.after] for p, count in pairs]
    ids = _left_padded(sequences, text.pad_token_id)
    mask = _left_padded([[1] * len(sequence) for sequence in sequences], 0)
    position_ids = _left_padded([_position_ids(p, count, patches, positions) for p, count in pairs], 0)
    slots = (ids == text.image_token_id) & mask.bool()  # a checkpoint may pad with its image token
    if index is not None and positions == "original":
        starts = torch.tensor([len(p.before) for p in prompts])[:, None]
        position_ids[slots] = _present(index.cpu() + starts, slots)
    unpruned = max(len(p.before) + patches + len(p.after) for p in prompts)
    return PromptLayout(ids, slots, mask, position_ids, unpruned)


def fill(language: Language, layout: PromptLayout, visual: Float[Tensor, "question most embed"]) -> ModelInputs:
    """Embed a layout, and put each question's own visual tokens into its slots.

    `visual` is padded behind where a question keeps fewer.
    """
    parts = (layout.input_ids, layout.slots, layout.attention_mask, layout.position_ids)
    ids, slots, mask, position_ids = (part.to(language.device) for part in parts)
    embeds = language.embed(ids).masked_scatter(slots[..., None], cast(_present(visual, slots), language.dtype))
    return ModelInputs(ids, embeds, mask, position_ids, slots, layout.unpruned)


def assemble(
    language: Language,
    prompts: Sequence[Prompt],
    visual: Float[Tensor, "question most embed"],
    index: Int[Tensor, "question most"] | None,
    patches: int,
    positions: Positions,
    kept: Sequence[int] | None = None,
) -> ModelInputs:
    """Make a batch of questions by `lay_out` and `fill`: each has its own visual tokens, the first `kept` of them."""
    kept = [visual.shape[1]] * len(prompts) if kept is None else kept
    layout = lay_out(language, prompts, kept, index, patches, positions)
    return fill(language, layout, visual)


def cast(features: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Cast features to the text embeddings' dtype; no other code casts features."""
    return features.to(dtype)


def cast_is_exact(features: torch.dtype, embeddings: torch.dtype) -> bool:
    """Return whether `cast` keeps every value: true for the same dtype, and for a 16-bit dtype in float32."""
    return torch.promote_types(features, embeddings) == embeddings


def _present(rows: Shaped[Tensor, "question most *rest"], slots: Bool[Tensor, "question token"]) -> Tensor:
    """Return the rows that have slots, one question behind the other: all rows, unless some questions keep fewer."""
    counts = slots.sum(-1, keepdim=True)
    has_slot = torch.arange(rows.shape[1], device=slots.device) < counts
    return rows.flatten(0, 1) if has_slot.all() else rows[has_slot]


def _position_ids(prompt: Prompt, kept: int, patches: int, positions: Positions) -> list[int]:
    """Return the position ids of one question; under `original`, `lay_out` replaces those of the visual tokens."""
    before = len(prompt.before)
    image_end = before + (patches if positions == "original" else kept)
    return [*range(before + kept), *range(image_end, image_end + len(prompt.after))]


def _left_padded(sequences: Sequence[Sequence[int]], padding: int) -> Int[Tensor, "question token"]:
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[padding] * (longest - len(sequence)) + list(sequence) for sequence in sequences])
