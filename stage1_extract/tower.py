"""What stage 1 must know of a kind of vision tower; one file per kind in `towers/`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from configs import plugin
from stage1_extract.errors import UnsupportedModel


@dataclass(frozen=True)
class TowerFacts:
    """A tower's geometry, read from its config alone."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    hidden: int
    """Width of its hidden states."""
    heads: int
    """Attention heads of a layer."""
    layers: int
    """Layers; there is one hidden state more."""
    has_cls: bool
    """Whether a CLS row precedes the patches."""

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


class Tower(ABC):
    """A kind of tower, found by its config's `model_type`."""

    model_types: ClassVar[frozenset[str]]

    @classmethod
    @abstractmethod
    def facts(cls, config: Any) -> TowerFacts:
        """Geometry from the vision config."""

    @classmethod
    @abstractmethod
    def layers(cls, tower: nn.Module) -> Sequence[nn.Module]:
        """Its layers in order; `hidden_states[j]` is the output of layer j - 1."""

    @classmethod
    @abstractmethod
    def query_and_key(cls, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The two projections of a layer's self-attention, each (image, token, hidden) -> (image, token, hidden)."""


def square_grid(config: Any) -> tuple[int, int]:
    """The grid of a square image cut into square patches."""
    edge = config.image_size // config.patch_size
    return edge, edge


def kind_of_tower(config: Any) -> type[Tower]:
    """The file of `towers/` that serves a vision config; UnsupportedModel names the file to add."""
    from stage1_extract import towers

    kinds = plugin.find_all(towers, Tower)
    for kind in kinds.values():
        if config.model_type in kind.model_types:
            return kind
    known = sorted(name for kind in kinds.values() for name in kind.model_types)
    raise UnsupportedModel(
        f"expected a vision tower of type {', '.join(known)}, this one is {config.model_type!r}: "
        f"add stage1_extract/towers/{config.model_type}.py"
    )
