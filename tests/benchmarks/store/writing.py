"""Writing a shard, and how many bytes a store takes."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

from store.layout.schema import ShardLayout
from store.layout.shard import write_shard
from tests.benchmarks.store.data import IMAGES, SHAPES, SHARD_IMAGES, Rows, make_shards, row_bytes
from tests.benchmarks.store.lines import Line
from tests.benchmarks.store.stores import SPECS, no_fsync
from tests.benchmarks.store.timing import FEW_ROUNDS, ROUNDS, interleaved


def shards(folder: Path, name: str) -> list[Line]:
    """The shard writer, checksums included, against one plain write of the same bytes, each into a new file."""
    rows = next(make_shards(name))
    target, plain = folder / "written", folder / "written.bin"

    def ours() -> None:
        with no_fsync():
            write_shard(target, ShardLayout(SPECS[name], SHARD_IMAGES), 0, rows)

    def unchecked() -> None:
        with (
            no_fsync(),
            mock.patch("store.layout.shard.crc", lambda *_: 0),
        ):  # in this process only: what checksums cost
            write_shard(target, ShardLayout(SPECS[name], SHARD_IMAGES), 0, rows)

    def durable() -> None:
        write_shard(target, ShardLayout(SPECS[name], SHARD_IMAGES), 0, rows)

    def removed() -> None:
        for path in (plain, *(target.rglob("*") if target.exists() else ())):
            if path.is_file():
                path.unlink()

    runs: dict[str, Callable[[], None]] = {
        "plain": lambda: _write(plain, rows),
        "ours": ours,
        "unchecked": unchecked,
        "durable": durable,
    }
    took = interleaved(runs, ROUNDS if name == "raw" else FEW_ROUNDS, removed)
    removed()
    speed = {way: took["plain"] / seconds for way, seconds in took.items()}
    return [
        Line(f"{name}: shard writer without fsync / file write", "writes checksums", speed["ours"], least=0.8),
        Line(f"{name}: the same without computing checksums / file write", "none computed", speed["unchecked"]),
        Line(f"{name}: shard writer with fsync / file write without", "writes checksums", speed["durable"]),
    ]


def _write(path: Path, rows: Rows) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(rows.data)


def bytes_written(folder: Path) -> Line:
    """Everything in the store's folder, ids and log included."""
    written = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    data = IMAGES * sum(row_bytes(name) for name in SHAPES)
    return Line("bytes written / data", "writes checksums", written / data, "of the data", most=1.01)
