"""Capture queries and keys from the tower's own SDPA forward by hooks; eager attention would change the features."""

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

ATTENTION = "sdpa"
"""The attention implementation of every model of this stage, as transformers names it."""
Reduction = Callable[[Float[Tensor, "image head token width"], Float[Tensor, "image head token width"]], Tensor]
"""Makes an array of a layer's queries and keys, in float32; an image's bits do not depend on its batch."""


class AttentionTap:
    """A context manager around one forward: each layer's queries and keys are reduced when they are made, then freed."""

    def __init__(self, layers: Mapping[int, tuple[nn.Module, nn.Module]], heads: int) -> None:
        """Prepare the tap; `layers` holds the query and the key projection of each layer."""
        self._layers, self._heads = layers, heads
        self._wanted: dict[int, list[Reduction]] = {layer: [] for layer in layers}
        self._seen: dict[nn.Module, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.reduced: dict[tuple[int, Reduction], Tensor] = {}
        """After the forward, the results by layer and reduction."""

    def want(self, layer: int, reduction: Reduction) -> None:
        """Ask for a reduction of a layer, before the forward."""
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
        if all(projection in self._seen for projection in modules):
            query, key = (self._by_head(self._seen.pop(projection)) for projection in modules)
            self.reduced |= {(layer, reduce): reduce(query, key) for reduce in self._wanted[layer]}

    def _by_head(self, projected: Tensor) -> Tensor:
        images, tokens, width = projected.shape
        return projected.view(images, tokens, self._heads, width // self._heads).transpose(1, 2).float()


def cls_row(query: Tensor, key: Tensor) -> Float[Tensor, "image head token"]:
    """Return the attention of the CLS row (row 0) to all rows, itself included: softmax(q_cls K^T / sqrt(head width)).

    Images are multiplied one by one: a product of one row for each of several images has other bits on some CPUs.
    """
    scores = [q[:, :1] @ k.transpose(-1, -2) for q, k in zip(query, key, strict=True)]
    return torch.softmax(torch.stack(scores).squeeze(2) * query.shape[-1] ** -0.5, dim=-1)


def cls_row_mean(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Return `cls_row`, averaged over heads."""
    return cls_row(query, key).mean(1)


def received(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Return the attention that each row receives, averaged over heads and over all rows that attend: a full Q K^T."""
    return torch.stack([_attention(q, k).mean((0, 1)) for q, k in zip(query, key, strict=True)])


def diagonal(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Return the attention of each row to itself, averaged over heads."""
    by_image = [_attention(q, k).diagonal(dim1=-2, dim2=-1).mean(0) for q, k in zip(query, key, strict=True)]
    return torch.stack(by_image)


def mean_keys(query: Tensor, key: Tensor) -> Float[Tensor, "image token width"]:
    """Return the keys, averaged over heads."""
    return key.mean(1)


def whole_keys(query: Tensor, key: Tensor) -> Float[Tensor, "image token hidden"]:
    """Return the keys of all heads, one head after the other."""
    return key.transpose(1, 2).flatten(2)


def whole_cls_row(query: Tensor, key: Tensor) -> Float[Tensor, "image token"]:
    """Return the attention of the CLS row as if there were a single head as wide as all: softmax(q_cls K^T / sqrt(hidden))."""
    rows, cls = whole_keys(query, key), whole_keys(key, query)[:, :1]
    scores = [c @ r.transpose(-1, -2) for c, r in zip(cls, rows, strict=True)]  # image by image, as in `cls_row`
    return torch.softmax(torch.stack(scores)[:, 0] * rows.shape[-1] ** -0.5, dim=-1)


def _attention(query: Tensor, key: Tensor) -> Float[Tensor, "head token token"]:
    """Return the whole attention of one image; all images of a batch at once would take hundreds of megabytes."""
    return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
