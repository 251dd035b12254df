"""How arrays that a store lacks can be had, or why they cannot."""

from collections.abc import Collection

from store.layout.plan import Plan

NEED_CLS_ROW = frozenset({"cls_hidden", "cls_attention", "cls_attention_layers", "last_layer_attention"})
"""Arrays that are made of the tower's CLS row."""


def how_to_add(names: Collection[str], plan: Plan) -> str:
    """Say what adds the arrays `names` to a store, or why no command can and what to do instead."""
    listed = ",".join(sorted(names))
    geometry = plan.geometry
    impossible = sorted(NEED_CLS_ROW.intersection(names)) if not geometry.has_cls else []
    if geometry.patch_grid is None and not geometry.has_cls:
        return (
            "this model's own code made the features, and gives nothing but `projected`: leave out methods that read "
            f"{listed}"
        )
    if impossible:
        return (
            f"the tower has no CLS row, of which {', '.join(impossible)} would be made: leave out methods that read it"
        )
    return f"add with `extract --append --capture {listed}`"
