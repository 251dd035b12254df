"""What lies in a store's folders of plans and commits and is neither: copies that a tool made, files of a desktop, a folder.

Nothing reads them, so they stop nobody. `verify` lists them and `repair` moves them out, so that nobody takes one for a record.
"""

from pathlib import Path

from configs.files.atomic import PARTIAL
from store.files.disk import Unreadable, in_the_way, listed, move_out, numbered
from store.layout.plan import PLAN, SPARE, Plan
from store.log.commits import log_folder
from store.log.compacted import COMPACTED

_MANIFEST = ".manifest.json"


def strays(store: Path, plan: Plan) -> list[Path]:
    """Everything in those folders that has another name than what belongs there, and what lies in place of such a folder."""
    plans, found = (store / PLAN).parent, list[Path]()
    found += [path for path in listed(plans) if not _is_plan(path.name, plan.generation)]
    for generation in range(plan.generation + 1):
        folder = log_folder(store, generation)
        odd = in_the_way(store, folder / COMPACTED)
        if odd not in (None, folder / COMPACTED):
            found.append(odd)
            continue
        try:
            found += [path for path in listed(folder) if not _is_record(path, generation)]
        except Unreadable:
            found.append(folder)
    return sorted({*found})


def move_strays(store: Path, plan: Plan) -> dict[Path, Path]:
    """Move all of them out; where each lay, and where it lies now. The caller is alone in the store."""
    return {path: move_out(store, path) for path in strays(store, plan)}


def _is_plan(name: str, newest: int) -> bool:
    """A manifest is written before its plan: that of the generation to come may be there alone."""
    name = name.removesuffix(SPARE) if not _passes(name) else name
    number = numbered(name.replace(_MANIFEST, ".json"))
    return _passes(name) or (number is not None and number <= newest + name.endswith(_MANIFEST))


def _is_record(path: Path, generation: int) -> bool:
    is_log = generation == 0 and numbered(f"{path.name}.json") is not None and path.is_dir()
    return is_log or path.name == COMPACTED or numbered(path.name) is not None or _passes(path.name)


def _passes(name: str) -> bool:
    """Files that are being written, or that a network disk keeps until whoever reads them is done."""
    return (name.startswith(".") and name.endswith(PARTIAL)) or name.startswith(".nfs")
