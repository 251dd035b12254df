"""Which file of `towers/` serves a vision config."""

from typing import Any

from configs import plugin
from stage1_extract import towers
from stage1_extract.encoding.tower import Tower
from stage1_extract.errors import UnsupportedModel


def kind_of_tower(config: Any) -> type[Tower]:
    """The file of `towers/` that serves a vision config; UnsupportedModel names the file to add."""
    kinds = plugin.find_all(towers, Tower)
    for kind in kinds.values():
        if config.model_type in kind.model_types:
            return kind
    known = sorted(name for kind in kinds.values() for name in kind.model_types)
    raise UnsupportedModel(
        f"expected a vision tower of type {', '.join(known)}, this one is {config.model_type!r}: "
        f"add stage1_extract/towers/{config.model_type}.py"
    )
