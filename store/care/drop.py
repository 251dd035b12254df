"""Taking an array out of a store, and its bytes off the disk."""

import shutil
from pathlib import Path

from store.errors import StoreMissing
from store.layout.plan import FEATURES
from store.reading.reader import FeatureStore
from store.writing.growth import without
from store.writing.writer import StoreWriter


def drop(path: Path, name: str) -> int:
    """Write a generation without the array `name`, then remove the array's files; return the bytes that are free again.

    If the process is killed in between, the files are left, and the same call removes them.

    Raises:
        StoreMissing: the store has no such array, or no other array (exit 5).
        StoreLocked: another process writes (exit 6).
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
