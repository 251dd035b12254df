"""DINOv2 (Oquab et al. 2023)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from stage1_extract.tower import Tower, TowerFacts, square_grid


class Dinov2(Tower):
    """CLS row first; the last hidden state is normalised once more than the last layer's output."""

    model_types = frozenset({"dinov2"})

    @classmethod
    def facts(cls, config: Any) -> TowerFacts:
        """Geometry from the vision config."""
        return TowerFacts(
            grid=square_grid(config),
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            has_cls=True,
        )

    @classmethod
    def layers(cls, tower: nn.Module) -> Sequence[nn.Module]:
        """Its layers in order."""
        return list(tower.get_submodule("encoder.layer").children())

    @classmethod
    def query_and_key(cls, layer: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The two projections of its self-attention."""
        return layer.get_submodule("attention.q_proj"), layer.get_submodule("attention.k_proj")
