"""A shard in another's place is whole by itself; only the commit record tells that it is not the one. No reader returns it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from stage1_extract.extract import extract
from store.care.compare import differences_between
from store.care.verify import verify
from store.copies.contents import Contents
from store.copies.copies import write_copy
from store.errors import IntegrityError
from store.layout.shard import write_shard
from store.reading.reader import FEATURES, FeatureStore
from tests.faults.runs import ROOT, invoke, trial
from tests.helpers.s3 import Copy, s3_server
from tests.store.stores import flip, store_of, values

COUNT = 5
"""Two full shards of two images, and one of one."""
ARRAYS = ("small", "large")
ACCESS = ("mmap", "preadv", "zarr")
VERIFY = ("never", "first-read", "always")


def place(path: Path, array: str, shard: int) -> Path:
    return path / FEATURES / array / "c" / str(shard) / "0" / "0"


def swap(one: Path, other: Path) -> None:
    """Let two files change places."""
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def assert_refused(location, array, rows, *named, **how):
    store = FeatureStore.open(location, **how)
    for row in rows:
        with pytest.raises(IntegrityError, match="is not the file that was committed there") as caught:
            store.gather(array, [row])
        assert all(str(one) in str(caught.value) for one in named)


@pytest.fixture
def path(tmp_path):
    return store_of(tmp_path / "store", COUNT)


@pytest.mark.parametrize("array", ARRAYS)
def test_shards_that_changed_places_are_refused_by_every_reader_however_it_checks(path, array):
    swap(place(path, array, 0), place(path, array, 1))
    for access in ACCESS:
        for check in VERIFY:
            assert_refused(path, array, range(4), f"python -m store repair {path}", access=access, verify=check)
            last = FeatureStore.open(path, access=access, verify=check)
            assert np.array_equal(last.gather(array, [4]), values(last.arrays[array], range(4, 5)))
    assert [(one.path, one.shard) for one in verify(path, quick=False)] == [
        (str(place(path, array, shard)), shard) for shard in (0, 1)
    ]


@pytest.mark.parametrize("array", ARRAYS)
def test_a_shard_of_another_store_of_the_same_shape_is_refused(path, tmp_path, array):
    store = FeatureStore.open(path)
    other = values(store.arrays[array], range(2), seed=1)
    write_shard(tmp_path / "other", store.plan.layout(array), 0, other)
    shutil.copy(tmp_path / "other" / array / "c/0/0/0", place(path, array, 0))
    for access in ACCESS:
        assert_refused(path, array, (0, 1), place(path, array, 0), "shard 0", access=access, verify="always")


@pytest.mark.parametrize("array", ARRAYS)
def test_one_row_of_another_shard_with_its_checksum_is_refused(path, array):
    layout = FeatureStore.open(path).plan.layout(array)
    data = place(path, array, 1).read_bytes()
    with place(path, array, 0).open("r+b") as file:
        file.write(data[: layout.stride])
    for access in ACCESS:
        assert_refused(path, array, (0, 1), place(path, array, 0), access=access)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_damaged_checksum_is_refused_before_any_row_is_returned(path, array):
    layout = FeatureStore.open(path).plan.layout(array)
    flip(place(path, array, 0), 8 * (layout.stride - 1))
    for access in ACCESS:
        assert_refused(path, array, (0, 1), place(path, array, 0), access=access)


@pytest.mark.parametrize("array", ARRAYS)
def test_archives_refuse_shards_that_changed_places(path, tmp_path, array):
    archive = tmp_path / "archive"
    write_copy(Contents.of(FeatureStore.open(path)), archive, "zstd")
    first, second = place(archive, array, 0), place(archive, array, 1)
    assert first.stat().st_size == second.stat().st_size  # otherwise their sizes tell them apart
    swap(first, second)
    for access in ACCESS:
        assert_refused(archive, array, range(4), archive, "is an archive", access=access)


@pytest.mark.parametrize("array", ARRAYS)
def test_a_store_behind_a_url_refuses_shards_that_changed_places(path, array):
    swap(place(path, array, 0), place(path, array, 1))
    with s3_server():
        copy = Copy(path)
        assert_refused(copy.url, array, range(4), copy.url, "copy the files of shard")
        last = FeatureStore.open(copy.url)
        assert np.array_equal(last.gather(array, [4]), values(last.arrays[array], range(4, 5)))


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_that_is_replaced_while_the_store_is_open_is_compared_when_it_is_opened_again(path, access):
    store = FeatureStore.open(path, access=access)
    store._max_files = 1
    assert np.array_equal(store.gather("large", [0, 1]), values(store.arrays["large"], range(2)))
    swap(place(path, "large", 0), place(path, "large", 1))
    store.gather("large", [4])
    for row in range(4):
        with pytest.raises(IntegrityError, match="is not the file that was committed there"):
            store.gather("large", [row])


@pytest.mark.parametrize("access", ACCESS)
def test_a_file_that_is_overwritten_in_its_place_while_it_is_open_is_no_data(path, access):
    store = FeatureStore.open(path, access=access)
    assert np.array_equal(store.gather("large", [0]), values(store.arrays["large"], range(1)))
    with place(path, "large", 0).open("r+b") as file:
        file.write(place(path, "large", 1).read_bytes())
    with pytest.raises(IntegrityError):
        store.gather("large", [1])


CUT = """
import os, sys
from pathlib import Path
from store.errors import IntegrityError
from store.reading.reader import FeatureStore
store = FeatureStore.open(Path(sys.argv[1]))
store.gather("large", [0])
os.truncate(sys.argv[2], 0)
for row in (0, 1):
    try:
        store.gather("large", [row])
    except IntegrityError as error:
        assert "found 0 bytes" in str(error), error
        print("refused")
"""


def test_a_file_that_was_cut_after_it_was_mapped_is_an_error_and_no_signal(path):
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(path), str(place(path, "large", 0))],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused"]), done.stderr


def test_opening_a_shard_reads_its_checksums_and_no_row(path, monkeypatch):
    read = []
    real = os.pread

    def counted(descriptor, length, offset):
        read.append(length)
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    store = FeatureStore.open(path)
    store._max_files = 1
    for _ in range(2):  # opened twice, compared once: it is the same file
        store.gather("large", [0, 1])
        store.gather("large", [4])
    assert read == [4, 4, 4]


def test_what_reads_swapped_features_says_so_and_what_it_advises_makes_the_store_as_it_was(
    home, whole, tmp_path, capsys
):
    config = trial(home, tmp_path)
    experiment = load(config, {})
    store = Path(shutil.copytree(whole, experiment.store_path))
    first, second = (store / FEATURES / "projected" / "c" / shard / "0/0" for shard in ("3", "4"))
    swap(first, second)
    said = invoke(capsys, "eval", "--config", config, "--prune.methods", "[{name: keep_all}]", expect=4)
    assert "is not the file that was committed there" in said and f"python -m store repair {store}" in said
    for target in ("--hdf5", "--archive", "--safetensors", "--store"):
        out = tmp_path / f"out{target}"
        assert "is not the file" in invoke(capsys, "export", store, target, out, expect=4)
        assert not out.exists()
    invoke(capsys, "repair", store)
    assert extract(experiment, overwrite=False)["shards_written"] == 2
    assert differences_between(whole, store) == [] and verify(store, quick=False) == []
