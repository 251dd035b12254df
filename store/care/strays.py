"""Strays: what lies in a store's folders of plans and commits without being a plan or a commit.

Strays are copies that a tool made, files that a desktop program left, or folders. Nothing reads strays, so they stop no
command. `verify` lists strays and `repair` moves them out, so that nobody takes a stray for a record.
"""

from pathlib import Path

from configs.files.atomic import PARTIAL
from store.files.disk import Unreadable, in_the_way, listed, move_out, numbered
from store.layout.plan import PLAN, SPARE, Plan
from store.log.commits import log_folder
from store.log.compacted import COMPACTED

_MANIFEST = ".manifest.json"


def strays(store: Path, plan: Plan) -> list[Path]:
    """List everything in the folders of plans and commits whose name does not belong there, and files in place of a folder."""
    plans, odd_paths = (store / PLAN).parent, list[Path]()
    odd_paths += [path for path in listed(plans) if not _is_plan(path.name, plan.generation)]
    for generation in range(plan.generation + 1):
        folder = log_folder(store, generation)
        obstacle = in_the_way(store, folder / COMPACTED)
        if obstacle not in (None, folder / COMPACTED):
            odd_paths.append(obstacle)
            continue
        try:
            odd_paths += [path for path in listed(folder) if not _is_record(path, generation)]
        except Unreadable:
            odd_paths.append(folder)
    return sorted({*odd_paths})


def move_strays(store: Path, plan: Plan) -> dict[Path, Path]:
    """Move all strays out; return the old and the new path of each. The caller holds the store's lock."""
    return {path: move_out(store, path) for path in strays(store, plan)}


def _is_plan(name: str, newest: int) -> bool:
    """Accept plans, manifests and their spares.

    A manifest is written before its plan, so the manifest of the generation to come may be there without a plan.
    """
    name = name.removesuffix(SPARE) if not _is_temporary(name) else name
    number = numbered(name.replace(_MANIFEST, ".json"))
    return _is_temporary(name) or (number is not None and number <= newest + name.endswith(_MANIFEST))


def _is_record(path: Path, generation: int) -> bool:
    is_log = generation == 0 and numbered(f"{path.name}.json") is not None and path.is_dir()
    return is_log or path.name == COMPACTED or numbered(path.name) is not None or _is_temporary(path.name)


def _is_temporary(name: str) -> bool:
    """Accept files that are being written, and files that a network disk keeps until their last reader is done."""
    return (name.startswith(".") and name.endswith(PARTIAL)) or name.startswith(".nfs")
