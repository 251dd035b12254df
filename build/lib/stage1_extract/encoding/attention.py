"""What a tower's attention shows, from its own SDPA forward, by hooks: switching to eager attention would change the features."""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ATTENTION = "sdpa"
"""The attention implementation of every model of this stage."""
Reduction = Callable[[Float[Tensor, "image head token width"], Float[Tensor, "image head token width"]], Tensor]
"""What is kept of a layer's queries and keys, in float32; an image's bits do not depend on its batch."""


class AttentionTap:
    """Context manager around one forward: reduces the queries and keys of some layers as they come by, and lets them go."""

    def __init__(self, layers: Mapping[int, tuple[nn.Module, nn.Module]], heads: int) -> None:
        """`layers` are query and key projections by layer."""
        self._layers, self._heads = layers, heads
        self._wanted: dict[int, list[Reduction]] = {layer: [] for layer in layers}
        self._seen: dict[nn.Module, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.found: dict[tuple[int, Reduction], Tensor] = {}
        """After the forward, by layer and reduction."""

    def want(self, layer: int, reduction: Reduction) -> None:
        """Ask for something of a layer."""
        if reduction not in self._wanted[layer]:
            self._wanted[layer].append(reduction)

    def __enter__(self) -> "AttentionTap":
        for layer, modules in self._layers.items():
            if self._wanted[layer]:
                self._handles += [module.register_forward_hook(partial(self._take, layer)) for module in modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _take(self, layer: int, module: nn.Module, arguments: object, output: Tensor) -> None:
        self._seen[module] = output
        modules = self._layers[layer]
        if all(one in self._seen for one in modules):
            query, key = (self._by_head(self._seen.pop(one)) for one in modules)
            self.found |= {(layer, reduce): reduce(query, key) for reduce in self._wanted[layer]}

    def _by_head(self, projected: Tensor) -> Tensor:
        images, tokens, width = projected.shape
        return projected.view(images, tokens, self._heads, width // self._heads).transpose(1, 2).float()


def cls_row(query: Tensor, key: Tensor) -> Float[Tensor, "image head token"]:
    """Attention of the CLS row (row 0) to all rows, itself included: softmax(q_cls K^T / sqrt(head width))."""
    scores = query[:, :, :1] @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return torch.softmax(scores.squeeze(2), dim=-1)


def cls_row_mean(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """`cls_row`, averaged over heads."""
    return cls_row(query, key).mean(1)


def received(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Attention that each row receives, averaged over heads and over all rows that attend: a full Q K^T."""
    return torch.stack([_attention(q, k).mean((0, 1)) for q, k in zip(query, key, strict=True)])


def diagonal(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Attention of each row to itself, averaged over heads."""
    found = [_attention(q, k).diagonal(dim1=-2, dim2=-1).mean(0) for q, k in zip(query, key, strict=True)]
    return torch.stack(found)


def mean_keys(query: Tensor, key: Tensor) -> Float[Tensor, "image token width"]:
    """Keys, averaged over heads."""
    return key.mean(1)


def whole_keys(query: Tensor, key: Tensor) -> Float[Tensor, "image token hidden"]:
    """Keys of all heads behind each other."""
    return key.transpose(1, 2).flatten(2)


def whole_cls_row(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Attention of the CLS row as if there were one head as wide as all: softmax(q_cls K^T / sqrt(hidden))."""
    rows, cls = whole_keys(query, key), whole_keys(key, query)[:, :1]
    return torch.softmax((cls @ rows.transpose(-1, -2))[:, 0] * rows.shape[-1] ** -0.5, dim=-1)


def _attention(query: Tensor, key: Tensor) -> Float[Tensor, "head token token"]:
    """Of one image: all heads of a batch would take hundreds of megabytes."""
    return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
