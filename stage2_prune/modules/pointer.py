"""A pointer network whose state is the mean of what it has chosen."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage2_prune.modules.blocks import encoder, normed

STEP = 1e-4
"""By how much the score of each choice lies below that of the choice before it, at the least."""


class Pointer(nn.Module):
    """Logits of the next choice: a patch's own score, and its match with the mean of the chosen patches.

    Both are computed once per image, as pairs of patches, because the match with a mean is the mean of matches.
    """

    def __init__(self, hidden: int, width: int, heads: int, stops: bool) -> None:
        super().__init__()
        self.enter, self.blocks = nn.Linear(hidden, width), encoder(width, heads, 1)
        self.own = nn.Linear(width, 1, bias=False)
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.stop = nn.Linear(width, 1) if stops else None

    def forward(self, raw: Float[Tensor, "patch hidden"]) -> Float[Tensor, "patch 2+patch"]:
        """Compute for each patch its own logit, what choosing it adds to STOP, and its matches with all patches as chosen."""
        patches = self.blocks(self.enter(normed(raw))[None])[0]
        matches = self.key(patches) @ self.query(patches).T / patches.shape[-1] ** 0.5
        own = self.own(patches)
        stop = torch.zeros_like(own) if self.stop is None else self.stop(patches)
        return torch.cat([own, stop, matches], dim=1)


@torch.no_grad()
def pointed(
    own: Float[Tensor, "image patch"],
    matches: Float[Tensor, "image patch patch"],
    drawn: Int[Tensor, "image patch"],
    keep: int,
) -> Int[Tensor, "image {keep}"]:
    """Point to `keep` patches, one after another; of equal logits the patch that comes first in `drawn` is chosen.

    Every step is elementwise, so that no image depends on its batch.
    """
    left = own.gather(1, drawn)
    seen = matches.gather(1, drawn[..., None].expand_as(matches))
    total = torch.zeros_like(left)
    order: list[Tensor] = []
    for step in range(keep):
        logits = left + total / max(step, 1)
        chosen = logits.argmax(1, keepdim=True)  # of equal logits the first
        patch = drawn.gather(1, chosen)
        order.append(patch)
        left = left.scatter(1, chosen, -torch.inf)
        total = total + seen.gather(2, patch[..., None].expand(-1, seen.shape[1], 1))[..., 0]
    return torch.cat(order, dim=1)


def path_logits(
    own: Float[Tensor, "image patch"],
    stop: Float[Tensor, "image patch"],
    matches: Float[Tensor, "image patch patch"],
    order: Int[Tensor, "image patch"],
) -> Float[Tensor, "image patch"]:
    """Compute how far each choice of a path lay above STOP when it was chosen, differentiably, in the order of the path.

    STOP sees what has been chosen so far. Nothing could stop before the first choice, which is compared with what it says itself.
    """
    steps = torch.arange(order.shape[1], device=order.device).clamp_min(1)
    rows = matches.gather(1, order[..., None].expand_as(matches))
    matched = rows.gather(2, order[:, None].expand_as(rows)).tril(-1).sum(-1) / steps
    urged = stop.gather(1, order)
    before = torch.cat([urged[:, :1], urged.cumsum(1)[:, :-1]], dim=1) / steps
    return own.gather(1, order) + matched - before
