"""CLS attention from the tower's own SDPA forward, by hooks: switching to eager attention would change the features."""

from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ATTENTION = "sdpa"
"""The attention implementation of every model of this stage."""


class ClsAttention:
    """Context manager around one forward: takes a layer's queries and keys and weighs the CLS row's.

    After the forward, `weights()` is softmax(q_cls K^T / sqrt(head width)) in float32.
    """

    def __init__(self, query: nn.Module, key: nn.Module, heads: int) -> None:
        self._modules, self._heads = (query, key), heads
        self._taken: dict[nn.Module, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "ClsAttention":
        self._handles = [module.register_forward_hook(self._take) for module in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _take(self, module: nn.Module, arguments: object, output: Tensor) -> None:
        self._taken[module] = output

    def weights(self) -> Float[Tensor, "image head token"]:
        """Attention of the CLS row (row 0) to all rows, itself included."""
        query, key = (self._by_head(self._taken[module]) for module in self._modules)
        scores = query[:, :, :1] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        return torch.softmax(scores.squeeze(2), dim=-1)

    def _by_head(self, projected: Tensor) -> Tensor:
        images, tokens, width = projected.shape
        return projected.view(images, tokens, self._heads, width // self._heads).transpose(1, 2).float()
