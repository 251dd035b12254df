"""Exporting a store to safetensors files, for tools that read tensors; bfloat16 stays bfloat16."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch

from configs.progress import ProgressBar
from store.copies.contents import Contents
from store.layout.tensors import from_storage
from store.reading.reader import FeatureStore
from store.writing.aside import written_aside

INDEX = "index.json"


def export_safetensors(store: FeatureStore, out: Path) -> None:
    """Write what a store has committed to a new folder, whole or not at all; TargetExists (exit 2) if `out` exists.

    out/
      shard-00000.safetensors   <array> (image, …) of the shard's images, failed ones left out; metadata `rows` and `sha256`
      index.json                arrays, fingerprints, failures; for every file the rows, ids and names of its images, in order
    """
    contents = Contents.of(store)
    with written_aside(out) as aside:
        aside.mkdir()
        shards = ProgressBar(contents.shards, "export", unit="shards")
        files = [_write_shard(aside, contents, shard) for shard in shards]
        plan = contents.plan
        index = {
            "arrays": [spec.model_dump(mode="json") for spec in plan.arrays],
            "fingerprints": {name: made.model_dump(mode="json") for name, made in plan.fingerprints.items()},
            "failures": [
                {"row": row, "names": contents.ids.names(row), "reason": why} for row, why in contents.failures.items()
            ],
            "files": files,
        }
        (aside / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _write_shard(folder: Path, contents: Contents, shard: int) -> Mapping[str, Any]:
    """Write one file, and return what the index says about it."""
    rows, ids = contents.rows(shard), contents.ids
    shas = [ids.sha_of_row(row) for row in rows]
    tensors = {spec.name: from_storage(contents.read(spec.name, rows), spec.dtype) for spec in contents.plan.arrays}
    name = f"shard-{shard:05}.safetensors"
    library: Any = safetensors.torch  # typed in part
    library.save_file(tensors, folder / name, {"rows": json.dumps(rows), "sha256": json.dumps(shas)})
    return {"file": name, "rows": rows, "sha256": shas, "names": [ids.names(row) for row in rows]}
