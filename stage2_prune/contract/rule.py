"""What a rule of the contract is, and the generated features on which it is checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_prune.contract.inputs import TINY, long_tailed, ready, visual_tokens
from stage2_prune.pruning.pruner import Pruner
from stage2_prune.pruning.tokens import Pruned, VisualTokens


class Broken(Exception):
    """A pruner breaks a rule; the message is an example: the features, what was expected, and what the pruner returned."""


@dataclass(frozen=True)
class Case:
    """The features on which a rule is checked."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    images: int = 3
    dtype: torch.dtype = torch.float32
    widths: tuple[int, int, int] = TINY
    """Width of `raw`, heads of `cls_attention`, width of `projected`."""
    keeps: tuple[int, ...] = ()
    """The budgets in visual tokens; none stands for every budget from 1 to all patches."""

    def tokens(self) -> VisualTokens:
        """Generate the features, the same at every call."""
        return long_tailed(visual_tokens(self.grid, self.images, self.dtype, self.widths))

    def budgets(self, pruner: Pruner) -> Sequence[int]:
        """List the numbers that `prune` is called with."""
        patches = self.grid[0] * self.grid[1]
        if not pruner.takes_budget:
            return [pruner.asked_tokens(patches, patches)]
        return self.keeps or range(1, patches + 1)

    def ready(self, pruner: Pruner) -> Pruner:
        """Give a trained pruner a freshly seeded module for these features."""
        return ready(pruner, self.grid, self.widths)

    def __str__(self) -> str:
        """Name the features in an example."""
        return f"{self.grid[0]}x{self.grid[1]} patches in {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Rule:
    """One rule of the contract."""

    says: str
    """The rule as a sentence."""
    check: Callable[[Pruner, Case], None]
    """Raise Broken where a pruner, which is ready for the case, breaks the rule."""


def require(holds: bool | Tensor, example: str) -> None:
    """Raise Broken with an example unless the rule holds."""
    if not holds:
        raise Broken(example)


def pruned(pruner: Pruner, tokens: VisualTokens, keep: int) -> Pruned:
    """Prune tokens, of which the pruner sees only what it declares."""
    with torch.no_grad():
        return pruner.prune(tokens.only(pruner.needs, pruner.reads), keep)


def chosen(result: Pruned, image: int) -> list[Tensor]:
    """Return what a result says about one image: its index, its merge, or both, without the padding behind its count."""
    count = result.kept if result.counts is None else int(result.counts[image])
    forms = (result.index, None if result.merge is None else result.merge.weights)
    return [form[image, :count] for form in forms if form is not None]


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Check whether two results about an image have the same bits."""
    return len(some) == len(others) and all(map(torch.equal, some, others))


def shown(tensors: Sequence[Tensor]) -> str:
    """Write a result about an image for an example: the first of its indices, or of the patches that each token is made of."""
    if not tensors:
        return "nothing"
    rows = tensors[0]
    kept = rows if rows.dim() == 1 else (rows != 0).float().argmax(-1)
    more = ", …" if len(kept) > 8 else ""
    return f"[{', '.join(str(int(patch)) for patch in kept[:8])}{more}] ({len(kept)} tokens)"
