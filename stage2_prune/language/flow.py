"""Sequences of a batch on their way through the layers of a language model, and how they get shorter."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.in_llm import Drop

TEXT, MADE = -2, -1
"""Values in `Flow.patches` for a token that is not visual, and for a token that was merged from several tokens."""


@dataclass(frozen=True)
class Flow:
    """The sequences of a batch between two layers, padded on the left."""

    hidden: Float[Tensor, "question token embed"]
    before: Float[Tensor, "question token embed"]
    """Hidden states that entered the previous layer."""
    valid: Bool[Tensor, "question token"]
    position_ids: Int[Tensor, "question token"]
    patches: Int[Tensor, "question token"]
    """Index of each token among the prompt's visual tokens; MADE for a merged token, TEXT for a token of the text."""

    @property
    def visual(self) -> Bool[Tensor, "question token"]:
        """Return which tokens are visual."""
        return self.patches != TEXT


@dataclass(frozen=True)
class Span:
    """A span of layers, from `first` to the next span's first: these layers see the same tokens of the prompt."""

    first: int
    valid: Bool[Tensor, "question token"]
    shift: Int[Tensor, "question 1"]
    """How far the text behind the image has moved up, in positions."""
    kept: Int[Tensor, "question kept"]
    """The visual tokens that enter these layers, as `Flow.patches` counts them."""


def shortened(flow: Flow, drops: list[Drop], positions: Positions) -> Flow:
    """Shorten the sequences by the drops: merged tokens stand behind the visual tokens that stay."""
    counts = {(len(drop.index), 0 if drop.merged is None else len(drop.merged)) for drop in drops}
    if len(counts) > 1:
        raise PrunerMisused(
            f"expected the same number of visual tokens to stay for every question of a batch, got {sorted(counts)}: "
            "evaluate this method with eval.batch_size 1"
        )
    length, made = flow.hidden.shape[1], counts.pop()[1]
    sources: list[Tensor] = []
    for visual, drop in zip(flow.visual, drops, strict=True):
        indices = torch.arange(length + made, device=visual.device)
        at = visual.nonzero()[:, 0]
        first, end = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
        merged = indices[length:]
        sources.append(torch.cat([indices[:first], first + drop.index, merged, indices[end:length]]))
    source = torch.stack(sources)
    hidden = flow.hidden
    if made:
        hidden = torch.cat([hidden, torch.stack([d.merged for d in drops if d.merged is not None]).to(hidden)], 1)
    valid = _gathered(flow.valid, source, made, True)
    position_ids = _gathered(flow.position_ids, source, made, 0)
    if positions == "compact":
        position_ids = (valid.cumsum(-1) - 1).clamp(min=0)
    patches = _gathered(flow.patches, source, made, MADE)
    hidden = hidden.gather(1, source[..., None].expand(-1, -1, hidden.shape[-1]))
    return Flow(hidden, hidden, valid, position_ids, patches)


def causal_mask(valid: Bool[Tensor, "question key"], queries: int) -> Bool[Tensor, "question 1 query key"] | None:
    """Make the mask that SDPA layers expect for the last `queries` tokens.

    As in the stock model, the mask is None where SDPA needs none.
    """
    keys = valid.shape[1]
    if queries in (1, keys) and bool(valid.all()):
        return None
    tokens = torch.arange(keys, device=valid.device)
    return (tokens <= tokens[keys - queries :, None]) & valid[:, None, None, :]


def span_from(first: int, flow: Flow, position_ids: Int[Tensor, "question prompt"]) -> Span:
    """Return the span that begins with layer `first`; `position_ids` belong to the whole prompt."""
    kept = flow.patches[flow.visual].view(len(position_ids), int(flow.visual[0].sum()))
    return Span(first, flow.valid, position_ids[:, -1:] - flow.position_ids[:, -1:], kept)


def _gathered(values: Tensor, source: Tensor, made: int, fill: int | bool) -> Tensor:
    """Return `values` in the order of `source`, whose indices behind the last value are merged tokens filled with `fill`."""
    return torch.cat([values, values.new_full((len(values), made), fill)], 1).gather(1, source)
