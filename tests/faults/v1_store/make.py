"""Wrote `store`, which stays as it is: the first release's format, for every later one to read.

`python -m tests.faults.v1_store.make FOLDER` writes it anew, to look at what a change of the format would change.
"""

import sys
from pathlib import Path

import numpy as np

from store.layout.fingerprint import Fingerprint
from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec
from store.reading.projector_state import ProjectorState
from store.writing.lock import LOCK
from store.writing.writer import StoreWriter

NAMES = [["a.png", "copy of a.png"], ["b/ü 图.png"], ["c.png"]]


def main(path: Path) -> None:
    """Three images in two shards, the second of which could not be read."""
    ids = ImageIds.build([(f"{number:064x}", names) for number, names in enumerate(NAMES, start=1)])
    arrays = (
        ArraySpec(name="raw", axes=("patch", "hidden"), shape=(2, 3), dtype="bfloat16", attributes={"layer": -2}),
        ArraySpec(name="cls_attention", axes=("head", "patch"), shape=(1, 2), dtype="float32"),
    )
    made_by = Fingerprint(semantic={"checkpoint": "tiny", "dtype": "bfloat16"}, numeric={"torch": "2.11.0"})
    plan = Plan(
        n_images=len(ids), shard_images=2, arrays=arrays, fingerprints={spec.name: made_by for spec in arrays},
        geometry=Geometry(grid=(1, 2), has_cls=True, tokens=2), identity="content", ids_digest=ids.digest(),
        notes=("written to be kept",),
    )  # fmt: skip
    weights = {"linear_1.bias": np.array([0x3F80, 0xC000], "<u2"), "linear_1.weight": np.eye(2, 3, dtype="<f4")}
    projector = ProjectorState(
        "llava_mlp", {"act": "gelu"}, weights, {"linear_1.bias": "bfloat16", "linear_1.weight": "float32"}, "0" * 64
    )
    raw = 0x3F80 + np.arange(3 * 2 * 3, dtype="<u2").reshape(3, 2, 3)
    attention = (np.arange(6, dtype="<f4") / 8).reshape(3, 1, 2)
    with StoreWriter.open(path, plan, ids, projector) as writer:
        for shard in writer.missing_shards():
            rows = plan.rows(shard)
            values = {"raw": raw[rows.start : rows.stop], "cls_attention": attention[rows.start : rows.stop]}
            failures = {1: "truncated_image"} if 1 in rows else {}
            writer.commit_shard(shard, values, failures, {"began": 0.0, "ended": 1.0, "tower_images": len(rows)})
    (path / LOCK).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
