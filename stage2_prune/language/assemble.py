"""From visual tokens to a batch: the one code path of evaluation and of every parity mode.

Batches differ only in where the (question, kept, embed) tensor comes from; ids, padding, mask and positions
are made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.language.language import Language
from stage2_prune.pruning.tokens import Pruned
from store.checkpoint.text import Prompt, Text


@dataclass(frozen=True)
class Layout:
    """Where everything stands in a batch, before anything is embedded; rows are padded on the left."""

    input_ids: Int[Tensor, "question token"]
    """One image placeholder per kept visual token: a full model needs as many features."""
    slots: Bool[Tensor, "question token"]
    """Which of them are placeholders."""
    attention_mask: Int[Tensor, "question token"]
    """Always explicit: without it, gaps in `position_ids` are read as packed sequences, silently."""
    position_ids: Int[Tensor, "question token"]
    unpruned: int
    """Tokens that the longest row would have with every visual token."""


@dataclass(frozen=True)
class Batch:
    """What the language model is called with."""

    input_ids: Int[Tensor, "question token"]
    """What a full model would be called with: see `Layout`. Generation reads them beside the embeddings."""
    inputs_embeds: Float[Tensor, "question token embed"]
    attention_mask: Int[Tensor, "question token"]
    position_ids: Int[Tensor, "question token"]
    slots: Bool[Tensor, "question token"]
    """Where its visual tokens stand."""
    unpruned: int
    """As in `Layout`."""


def gather_kept(projected: Float[Tensor, "image patch embed"], pruned: Pruned) -> Float[Tensor, "image kept embed"]:
    """The visual tokens that go on: all patches were projected, only then is selected; merges are made by now."""
    if pruned.tokens is not None:
        return pruned.tokens
    assert pruned.index is not None and pruned.merge is None
    return projected.gather(1, pruned.index[..., None].expand(-1, -1, projected.shape[-1]))


def lay_out(
    text: Text,
    prompts: Sequence[Prompt],
    kept: Sequence[int],
    index: Int[Tensor, "question most"] | None,
    patches: int,
    positions: Positions,
) -> Layout:
    """Ids, mask and positions of a batch of questions, each with `kept` visual tokens of its own; on the CPU.

    `index` are the patches that they come from, padded behind where some keep fewer, None where a method merged. With
    `original` positions a kept patch stays where it stood among all `patches` and the text after it does too; with
    `compact` positions are consecutive.
    """
    if positions == "original" and index is None:
        raise PrunerMisused("merged tokens have no original positions: set prune.positions to compact for this method")
    pairs = list(zip(prompts, kept, strict=True))
    rows = [[*p.before, *[text.image_token_id] * count, *p.after] for p, count in pairs]
    ids = _left_padded(rows, text.pad_token_id)
    mask = _left_padded([[1] * len(row) for row in rows], 0)
    places = _left_padded([_places(p, count, patches, positions) for p, count in pairs], 0)
    slots = (ids == text.image_token_id) & mask.bool()  # a checkpoint may pad with its image token
    if index is not None and positions == "original":
        starts = torch.tensor([len(p.before) for p in prompts])[:, None]
        places[slots] = _present(index.cpu() + starts, slots)
    unpruned = max(len(p.before) + patches + len(p.after) for p in prompts)
    return Layout(ids, slots, mask, places, unpruned)


def fill(language: Language, layout: Layout, visual: Float[Tensor, "question most embed"]) -> Batch:
    """The batch of a layout, with each question's own visual tokens in its slots, padded behind where some keep fewer."""
    parts = (layout.input_ids, layout.slots, layout.attention_mask, layout.position_ids)
    ids, slots, mask, places = (part.to(language.device) for part in parts)
    embeds = language.embed(ids).masked_scatter(slots[..., None], cast(_present(visual, slots), language.dtype))
    return Batch(ids, embeds, mask, places, slots, layout.unpruned)


def assemble(
    language: Language,
    prompts: Sequence[Prompt],
    visual: Float[Tensor, "question most embed"],
    index: Int[Tensor, "question most"] | None,
    patches: int,
    positions: Positions,
    kept: Sequence[int] | None = None,
) -> Batch:
    """`lay_out` and `fill` in one: a batch of questions, each with its own visual tokens, the first `kept` of them."""
    kept = [visual.shape[1]] * len(prompts) if kept is None else kept
    layout = lay_out(language, prompts, kept, index, patches, positions)
    return fill(language, layout, visual)


def cast(features: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The features in the text embeddings' dtype; nothing else casts them."""
    return features.to(dtype)


def cast_is_exact(features: torch.dtype, embeddings: torch.dtype) -> bool:
    """Whether `cast` keeps every value: true for the same dtype and for a 16-bit one in float32."""
    return torch.promote_types(features, embeddings) == embeddings


def _present(rows: Shaped[Tensor, "question most *rest"], slots: Bool[Tensor, "question token"]) -> Tensor:
    """The rows that have slots, one question behind the other: all of them, unless some questions keep fewer."""
    counts = slots.sum(-1, keepdim=True)
    there = torch.arange(rows.shape[1], device=slots.device) < counts
    return rows.flatten(0, 1) if there.all() else rows[there]


def _places(prompt: Prompt, kept: int, patches: int, positions: Positions) -> list[int]:
    """Position ids of one row; those of the visual tokens are provisional under `original`."""
    before = len(prompt.before)
    image_end = before + (patches if positions == "original" else kept)
    return [*range(before + kept), *range(image_end, image_end + len(prompt.after))]


def _left_padded(rows: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "question token"]:
    longest = max(len(row) for row in rows)
    return torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows])
