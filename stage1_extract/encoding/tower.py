"""The interface of a kind of vision tower; `towers/` has one file per kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from stage1_extract.errors import UnsupportedModel


@dataclass(frozen=True)
class TowerFacts:
    """A tower's geometry, read from its config alone."""

    grid: tuple[int, int]
    """Rows and columns of patches."""
    hidden: int
    """Width of the tower's hidden states."""
    heads: int
    """Attention heads of a layer."""
    layers: int
    """Number of layers; the number of hidden states is one more."""
    has_cls: bool
    """Whether a CLS row precedes the patches."""
    has_clip_space: bool
    """Whether a CLIP's projection takes the hidden states into a space that images share with texts."""

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]


class Tower:
    """A kind of tower. This class holds what all transformers of square patches share; a file of `towers/` adds the rest.

    A tower that is built in another way overrides the methods.
    """

    model_types: ClassVar[frozenset[str]]
    """Values of `model_type` in the vision configs that this kind serves."""
    has_cls: ClassVar[bool]
    """Whether the first row is a CLS row."""
    has_clip_space: ClassVar[bool] = False
    """Whether this is the vision tower of a CLIP."""
    interpolates: ClassVar[bool] = False
    """Whether the stock forward fits the position embeddings to images of any size without being asked to."""
    layers_at: ClassVar[str]
    """Dotted path of the list of layers in the tower."""
    query_at: ClassVar[str]
    """Dotted path of the query projection in a layer."""
    key_at: ClassVar[str]
    """Dotted path of the key projection in a layer."""

    @classmethod
    def facts(cls, config: Any, pixels: tuple[int, int]) -> TowerFacts:
        """Read the geometry from the vision config; `pixels` are height and width of what the image processor makes.

        Raises UnsupportedModel (exit 2) where the tower does not take images of that size.
        """
        own = (config.image_size, config.image_size)
        if pixels != own and not cls.interpolates:
            raise UnsupportedModel(
                f"expected an image processor that makes {own[0]}x{own[1]} pixels, the only size that this "
                f"{config.model_type} takes, it makes {pixels[0]}x{pixels[1]}: correct `size` and `crop_size` in the "
                "checkpoint's preprocessor_config.json"
            )
        return TowerFacts(
            grid=(pixels[0] // config.patch_size, pixels[1] // config.patch_size),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            has_cls=cls.has_cls,
            has_clip_space=cls.has_clip_space,
        )

    @classmethod
    def layers(cls, tower: nn.Module) -> Sequence[nn.Module]:
        """List the layers of a tower in order; `hidden_states[j]` is the output of layer j - 1."""
        return list(tower.get_submodule(cls.layers_at).children())

    @classmethod
    def query_and_key(cls, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Return the query and key projections of a layer, each (image, token, hidden) -> (image, token, hidden)."""
        return layer.get_submodule(cls.query_at), layer.get_submodule(cls.key_at)
