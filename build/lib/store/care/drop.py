"""Take an array out of a store, and its bytes off the disk."""

import shutil
from pathlib import Path

from store.errors import StoreMissing
from store.reading.reader import FEATURES, FeatureStore
from store.writing.growth import without
from store.writing.writer import StoreWriter


def drop(path: Path, name: str) -> int:
    """A generation without the array, then its files' removal; returns the bytes that are free again.

    Killed in between, the files are left, and the same call removes them. Raises StoreMissing (exit 5) for an array that
    was never there, StoreLocked (exit 6).
    """
    store = FeatureStore.open(path)
    folder = path / FEATURES / name
    plan = store.plan
    if name in store.arrays:
        if len(plan.arrays) == 1:
            raise StoreMissing(
                f"expected another array in {path} than {name}, it has none: remove the whole store instead"
            )
        plan = without(plan, name)
    elif not (folder / "c").is_dir():
        raise StoreMissing(f"expected the array {name} in {path}, it has {', '.join(store.arrays)}")
    with StoreWriter.open(path, plan, store.ids, store.projector):
        freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        shutil.rmtree(folder)
    return freed
