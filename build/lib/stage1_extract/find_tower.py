"""Which file of `towers/` serves a vision config."""

from typing import Any

from configs import plugin
from stage1_extract import towers
from stage1_extract.encoding.tower import Tower
from stage1_extract.errors import UnsupportedModel


def kind_of_tower(config: Any) -> type[Tower]:
    """Find the kind of tower that serves a vision config; UnsupportedModel (exit 2) names the file to add."""
    kind = plugin.find_by_model_type(towers, config.model_type, Tower)
    if kind is None:
        raise UnsupportedModel(plugin.no_file_for(towers, config.model_type, Tower, "a vision tower"))
    return kind
