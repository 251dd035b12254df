"""`make bench-store` runs, and measures all that is demanded; how fast it is, is not asked here."""

import json
import subprocess
import sys
from pathlib import Path

DEMANDED = [
    "raw: gather(out=) / np.take",
    "projected: gather(out=) / np.take",
    "raw: gather, fresh array / np.memmap[rows]",
    "projected: gather, fresh array / np.memmap[rows]",
    "raw: gather(out=) / plain zarr",
    "projected: gather(out=) / plain zarr",
    "projected, cold: will_need + gather(out=) / memmap",
    "raw: shard writer without fsync / file write",
    "projected: shard writer without fsync / file write",
    "bytes written / data",
    "raw: DataLoader(num_workers=0) / memmap loop, fresh",
    "raw: DataLoader(num_workers=0) / memmap loop, one reused",
    "raw: prefetch thread / memmap loop",
    "anonymous memory over a 0.24 GB stream, gather",
    "anonymous memory over a 0.24 GB stream, prefetched",
    "open 1,000 ids",
    "row_of_name",
    "row_of_sha",
    "names, one of",
]
OTHERS = {"tensorstore", "lmdb", "litdata", "mosaicml-streaming", "webdataset"}


def measured(folder, *parts):
    command = [sys.executable, "-m", "tests.benchmarks.store", "--quick", "--json"]
    command += ["--folder", str(folder), "--others", str(folder / "not built"), *parts]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return json.loads(done.stdout)


def test_streaming_takes_its_buffers_and_16_mb_however_much_is_streamed(tmp_path):
    lines = measured(tmp_path, "memory")["lines"]
    assert len(lines) == 2
    assert all(line["measured"] <= line["most"] < 60 for line in lines), lines  # of 240 MB


def test_the_table_has_all_its_rows(tmp_path):
    found = measured(tmp_path)
    demanded = [line["check"] for line in found["lines"] if line["least"] is not None or line["most"] is not None]
    assert len(demanded) == len(DEMANDED)
    for check in DEMANDED:
        assert sum(line.startswith(check) for line in demanded) == 1, check
    assert all(line["verify"] for line in found["lines"])
    assert found["not_measured"].keys() == OTHERS
    assert {"h5py", "safetensors", ".pt"} <= {
        word for name in found["containers"] for word in name.replace(",", "").split()
    }
