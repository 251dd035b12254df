"""The stores that are measured, written by the project's own writer."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from store.layout.geometry import Geometry
from store.layout.ids import ImageIds
from store.layout.plan import Plan
from store.layout.schema import ArraySpec
from store.layout.shard import FileRecord
from store.log.commits import CommitRecord, publish
from store.writing.writer import StoreWriter
from tests.benchmarks.store.data import IMAGES, SHAPES, SHARD_IMAGES, make_shards

SPECS = {
    name: ArraySpec(name=name, axes=("patch", axis), shape=SHAPES[name], dtype="float16")
    for name, axis in (("raw", "hidden"), ("projected", "embed"))
}


def write_store(path: Path) -> None:
    """Both arrays, every shard committed."""
    plan, ids = planned(IMAGES)
    with StoreWriter.open(path, plan, ids, None) as writer:
        shards = zip(*(make_shards(name) for name in SPECS), strict=True)
        for number, arrays in enumerate(shards):
            writer.commit_shard(number, dict(zip(SPECS, arrays, strict=True)), {}, {})


def planned(images: int) -> tuple[Plan, ImageIds]:
    """Plan and ids of so many images."""
    ids = ImageIds.build(
        [(hashlib.sha256(image_name(row).encode()).hexdigest(), [image_name(row)]) for row in range(images)]
    )
    specs = tuple(SPECS.values())
    plan = Plan(
        n_images=images,
        shard_images=SHARD_IMAGES,
        arrays=specs,
        fingerprints={},
        geometry=Geometry(grid=(24, 24), has_cls=True, tokens=576),
        identity="content",
        ids_digest=ids.digest(),
    )
    return plan, ids


def image_name(row: int) -> str:
    """A name as long as those of real data."""
    return f"coco/train2017/{row:012}.jpg"


def commit_without_shards(path: Path, plan: Plan, ids: ImageIds) -> None:
    """The records of all shards, for files that are not there: to measure what reading the log costs."""
    layouts = {name: plan.layout(name) for name in SPECS}
    with no_fsync():
        for shard in range(plan.n_shards):
            rows = plan.rows(shard)
            files = {
                name: FileRecord(path=layout.relative_path(shard), bytes=layout.file_bytes(len(rows)), crc32c=0)
                for name, layout in layouts.items()
            }
            record = CommitRecord(
                shard=shard, first_row=rows.start, last_row=rows.stop - 1, ids_digest=ids.digest(rows),
                plan_digest=plan.digest, files=files, failures={}, telemetry={},
            )  # fmt: skip
            publish(path, record)


@contextmanager
def no_fsync() -> Iterator[None]:
    """Writing without waiting for the disk, in this process only: the writer itself has no such switch, on purpose."""
    with mock.patch("os.fsync", lambda _: None):
        yield
