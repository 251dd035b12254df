"""Which kind of tower serves a vision config."""

from typing import Any

from configs import plugin
from stage1_extract import towers
from stage1_extract.encoding.tower import Tower
from stage1_extract.errors import UnsupportedModel


def kind_of_tower(config: Any, named: str | None = None) -> type[Tower]:
    """Find the kind of tower that serves a vision config; UnsupportedModel (exit 2) names the file to add.

    `named` is the kind that `model.tower` chooses.
    """
    kind = plugin.find_by_model_type(towers, config.model_type, Tower, named)
    if kind is None:
        raise UnsupportedModel(plugin.no_file_for(towers, config.model_type, Tower, "a vision tower"))
    return kind
