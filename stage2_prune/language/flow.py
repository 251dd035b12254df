"""Sequences of a batch on their way through the layers of a language model, and how they get shorter."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from configs.experiment import Positions
from stage2_prune.errors import PrunerMisused
from stage2_prune.pruning.in_llm import Drop

TEXT, MADE = -2, -1
"""What stands in `Flow.patches` for a token that is no visual one, and for one that was merged of several."""


@dataclass(frozen=True)
class Flow:
    """The sequences of a batch between two layers, padded on the left."""

    hidden: Float[Tensor, "question token embed"]
    before: Float[Tensor, "question token embed"]
    """What entered the layer before."""
    valid: Bool[Tensor, "question token"]
    places: Int[Tensor, "question token"]
    """Position ids."""
    patches: Int[Tensor, "question token"]
    """Which of the prompt's visual tokens a token is; MADE if it was merged of some, TEXT if it is none."""

    @property
    def visual(self) -> Bool[Tensor, "question token"]:
        """The visual tokens."""
        return self.patches != TEXT


@dataclass(frozen=True)
class Segment:
    """The layers from `first` to the next segment's: they see the same tokens of the prompt."""

    first: int
    valid: Bool[Tensor, "question token"]
    shift: Int[Tensor, "question 1"]
    """How far the text behind the image has moved up."""
    kept: Int[Tensor, "question kept"]
    """The visual tokens that enter these layers, as `Flow.patches` counts them."""


def shortened(flow: Flow, drops: list[Drop], positions: Positions) -> Flow:
    """The sequences with what the drops leave of their visual tokens, merged ones behind those that stay."""
    counts = {(len(drop.index), 0 if drop.merged is None else len(drop.merged)) for drop in drops}
    if len(counts) > 1:
        raise PrunerMisused(
            f"expected the same number of visual tokens to stay for every question of a batch, got {sorted(counts)}: "
            "evaluate this method with eval.batch_size 1"
        )
    length, made = flow.hidden.shape[1], counts.pop()[1]
    orders: list[Tensor] = []
    for visual, drop in zip(flow.visual, drops, strict=True):
        everything = torch.arange(length + made, device=visual.device)
        at = visual.nonzero()[:, 0]
        first, end = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
        new = everything[length:]
        orders.append(torch.cat([everything[:first], first + drop.index, new, everything[end:length]]))
    order = torch.stack(orders)
    hidden = flow.hidden
    if made:
        hidden = torch.cat([hidden, torch.stack([d.merged for d in drops if d.merged is not None]).to(hidden)], 1)
    valid = _gathered(flow.valid, order, made, True)
    places = _gathered(flow.places, order, made, 0)
    if positions == "compact":
        places = (valid.cumsum(-1) - 1).clamp(min=0)
    patches = _gathered(flow.patches, order, made, MADE)
    hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    return Flow(hidden, hidden, valid, places, patches)


def causal_mask(valid: Bool[Tensor, "question key"], queries: int) -> Bool[Tensor, "question 1 query key"] | None:
    """What SDPA layers expect of the last `queries` tokens; None, as in the stock model, where it can do without."""
    keys = valid.shape[1]
    if queries in (1, keys) and bool(valid.all()):
        return None
    everything = torch.arange(keys, device=valid.device)
    return (everything <= everything[keys - queries :, None]) & valid[:, None, None, :]


def segment(first: int, flow: Flow, places: Int[Tensor, "question prompt"]) -> Segment:
    """The segment that begins with layer `first`; `places` are the position ids of the whole prompt."""
    kept = flow.patches[flow.visual].view(len(places), int(flow.visual[0].sum()))
    return Segment(first, flow.valid, places[:, -1:] - flow.places[:, -1:], kept)


def _gathered(values: Tensor, order: Tensor, made: int, fill: int | bool) -> Tensor:
    """`values` in a new order, in which those behind the last are merged tokens."""
    return torch.cat([values, values.new_full((len(values), made), fill)], 1).gather(1, order)
