"""How a store gets rows and arrays that it lacks, or why it cannot get an array."""

from collections.abc import Collection

from configs.errors import EXTRACT, TEACH
from store.layout.plan import Plan

NEED_CLS_ROW = frozenset({"cls_hidden", "cls_attention", "cls_attention_layers", "last_layer_attention"})
"""Arrays that are made from the tower's CLS row."""


def maker_of(plan: Plan) -> str:
    """Name the command that computes the rows of a store."""
    return TEACH if plan.maker == "teach" else EXTRACT


def how_to_add(names: Collection[str], plan: Plan) -> str:
    """Name the command that adds the arrays `names` to a store; if no command can, say why and what to do instead."""
    listed = ",".join(sorted(names))
    geometry = plan.geometry
    impossible = sorted(NEED_CLS_ROW.intersection(names)) if not geometry.has_cls else []
    if geometry.patch_grid is None and not geometry.has_cls:
        return (
            "the model's own code made these features, and that code gives nothing but `projected`: leave out methods "
            f"that read {listed}"
        )
    if impossible:
        return (
            f"the tower has no CLS row, of which {', '.join(impossible)} would be made: leave out methods that read it"
        )
    return f"add with `extract --append --capture {listed}`"
