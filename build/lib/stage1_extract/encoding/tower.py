"""What stage 1 must know of a kind of vision tower; one file per kind in `towers/`."""

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
    """Width of its hidden states."""
    heads: int
    """Attention heads of a layer."""
    layers: int
    """Layers; there is one hidden state more."""
    has_cls: bool
    """Whether a CLS row precedes the patches."""
    has_clip_space: bool
    """Whether a CLIP's projection leads its hidden states into a space that texts share."""

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


class Tower:
    """A kind of tower: what is the same in all transformers of square patches; a file of `towers/` says the rest.

    A tower that is built otherwise overrides the methods.
    """

    model_types: ClassVar[frozenset[str]]
    """`model_type`s of the vision configs that it serves."""
    has_cls: ClassVar[bool]
    """Whether its first row is a CLS row."""
    has_clip_space: ClassVar[bool] = False
    """Whether it is the vision tower of a CLIP."""
    interpolates: ClassVar[bool] = False
    """Whether it fits its position embeddings to images of any size, as its stock forward does unasked."""
    layers_at: ClassVar[str]
    """Where its list of layers is."""
    query_at: ClassVar[str]
    """Where a layer has the query projection of its self-attention."""
    key_at: ClassVar[str]
    """The same for the key projection."""

    @classmethod
    def facts(cls, config: Any, pixels: tuple[int, int]) -> TowerFacts:
        """Read the geometry from the vision config and from the height and width of what the image processor makes.

        Raises UnsupportedModel where the tower does not take images of that size.
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
        """Its layers in order; `hidden_states[j]` is the output of layer j - 1."""
        return list(tower.get_submodule(cls.layers_at).children())

    @classmethod
    def query_and_key(cls, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The two projections of a layer's self-attention, each (image, token, hidden) -> (image, token, hidden)."""
        return layer.get_submodule(cls.query_at), layer.get_submodule(cls.key_at)
