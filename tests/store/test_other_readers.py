"""Any reader of Zarr v3 sees the bytes that FeatureStore sees: zarr-python, zarrs, tensorstore, a newer zarr-python."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import zarr

from store.layout.plan import FEATURES
from store.reading.reader import FeatureStore
from tests.store.stores import DTYPES, store_of
from tests.store.test_copies import archived, grown_store

FAILED = {1: "truncated PNG"}
ARRAYS = ("small", "large")
NEWER = """
import json, sys
import numpy as np, zarr
group = zarr.open_group(sys.argv[1], mode="r")
names = json.loads(sys.argv[2])
np.savez(sys.argv[3], **{name: group[name][...] for name in names})
"""


@pytest.fixture(scope="module", params=[*DTYPES, "two generations", "archive"])
def path(request, tmp_path_factory):
    """Row 1 failed, the last shard is half full; `small` has one chunk a shard, `large` one an image."""
    folder = tmp_path_factory.mktemp("store")
    if request.param == "two generations":
        return grown_store(folder / "grown")
    if request.param == "archive":
        return archived(store_of(folder / "store", 5, "bfloat16", failures=FAILED), folder / "archive")
    return store_of(folder / "store", 5, request.param, failures=FAILED)


def by_zarr(path, scratch):
    group = zarr.open_group(path / FEATURES, mode="r")
    return {name: np.asarray(group[name][...]) for name in ARRAYS}


def by_zarrs(path, scratch):
    pytest.importorskip("zarrs", reason="zarrs is not installed")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return by_zarr(path, scratch)


def by_tensorstore(path, scratch):
    tensorstore = pytest.importorskip("tensorstore", reason="tensorstore is not installed")
    read = {}
    for name in ARRAYS:
        kvstore = {"driver": "file", "path": f"{path / FEATURES / name}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True, open=True).result()
        read[name] = np.asarray(array.read().result())
    return read


def by_newer_zarr(path, scratch):
    command = newer_python()
    if command is None:
        pytest.skip("no Python 3.12 or later with zarr 3.4 or later on the PATH")
    arguments = ["-c", NEWER, str(path / FEATURES), json.dumps(ARRAYS), str(scratch / "read.npz")]
    subprocess.run([command, *arguments], check=True)
    with np.load(scratch / "read.npz", allow_pickle=False) as read:
        return {name: read[name] for name in ARRAYS}


def newer_python():
    asked = "import zarr; assert tuple(map(int, zarr.__version__.split('.')[:2])) >= (3, 4)"
    for name in ("python3.12", "python3.13", "python3.14"):
        command = shutil.which(name)
        if command and subprocess.run([command, "-c", asked], capture_output=True).returncode == 0:
            return command
    return None


@pytest.mark.parametrize("read", [by_zarr, by_zarrs, by_tensorstore, by_newer_zarr])
def test_every_reader_sees_the_same_bytes_and_nan_where_an_image_failed(path, read, tmp_path):
    store, seen = FeatureStore.open(path), read(path, tmp_path)
    rows = [row for row in store.committed_rows if row not in store.failed()]
    for spec in store.arrays.values():
        assert seen[spec.name].shape == (store.plan.n_rows, *spec.shape)
        assert seen[spec.name].dtype == spec.storage
        assert seen[spec.name][rows].tobytes() == store.gather(spec.name, rows).tobytes()
        fill = np.full(spec.shape, spec.fill, spec.storage).tobytes()
        empty = sorted({*range(store.plan.n_rows)} - {*rows})
        assert 1 in empty and all(seen[spec.name][row].tobytes() == fill for row in empty)


def test_bfloat16_is_uint16_to_a_reader_that_has_no_bfloat16(tmp_path):
    path = store_of(tmp_path / "store", 2, "bfloat16")
    for name, values in by_zarr(path, tmp_path).items():
        assert values.dtype == np.uint16
        assert zarr.open_group(path / FEATURES, mode="r")[name].attrs["logical_dtype"] == "bfloat16"
